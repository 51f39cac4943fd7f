/**
 * What the enrollment pages must know of an issued certificate: is it for our key, whom does it
 * name, and which serial number will Firefox show. Nothing is verified here; the server did that.
 */

import { BadDER, TAG, objectIdentifier, readChildren, readExactly } from './der.js';

const COMMON_NAME = objectIdentifier('2.5.4.3');

/** The encodings of a DirectoryString that RFC 5280 §4.1.2.4 lets a CA use, and IA5String. */
const DECODERS = Object.freeze({
  [TAG.UTF8_STRING]: 'utf-8',
  [TAG.PRINTABLE_STRING]: 'utf-8',
  [TAG.IA5_STRING]: 'utf-8',
  [TAG.BMP_STRING]: 'utf-16be',
});

/**
 * @typedef {object} CertificateFacts
 * @property {string} serialNumber as the Certificate Manager of Firefox prints it: `72:1D:B3:80`
 * @property {string | null} commonName the last CN of the subject; null when there is none
 * @property {Uint8Array} publicKey DER, SubjectPublicKeyInfo
 */

/**
 * @param {Uint8Array} a
 * @param {Uint8Array} b
 * @returns {boolean} public values only: not constant time
 */
export function sameBytes(a, b) {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

/** @param {Uint8Array} bytes @returns {string} upper-case hex with colons */
function colonHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0').toUpperCase()).join(':');
}

/** @param {import('./der.js').Element} subject @returns {string | null} */
function lastCommonName(subject) {
  let found = null;
  for (const relativeName of readChildren(subject)) {
    for (const attribute of readChildren(relativeName)) {
      const [type, value] = readChildren(attribute);
      if (type === undefined || value === undefined) throw new BadDER('a name lacks its value');
      const encoding = DECODERS[value.tag];
      if (sameBytes(type.encoded, COMMON_NAME) && encoding !== undefined) {
        found = new TextDecoder(encoding).decode(value.content);
      }
    }
  }
  return found;
}

/**
 * Read one certificate (RFC 5280 §4.1).
 * @param {Uint8Array} der one X.509 certificate, nothing after it
 * @returns {CertificateFacts}
 * @throws {BadDER} not a certificate
 */
export function readCertificate(der) {
  const [tbs] = readChildren(readExactly(der, TAG.SEQUENCE));
  if (tbs === undefined) throw new BadDER('the certificate is empty');
  const fields = readChildren(tbs);
  // version is [0] EXPLICIT DEFAULT v1: version 1 certificates start with the serial number.
  if (fields[0]?.tag === TAG.CONTEXT_CONSTRUCTED) fields.shift();
  const [serial, , , , subject, publicKey] = fields;
  if (serial?.tag !== TAG.INTEGER || publicKey?.tag !== TAG.SEQUENCE) {
    throw new BadDER('this is not a certificate');
  }
  return {
    serialNumber: colonHex(serial.content),
    commonName: lastCommonName(subject),
    publicKey: publicKey.encoded.slice(),
  };
}
