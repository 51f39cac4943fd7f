/**
 * A PKCS#12 file (RFC 7292) with one private key, its certificate and the CA certificates.
 *
 * Two formats:
 * - modern: PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC, MAC with HMAC-SHA-256, for everything
 *   of today;
 * - compatible: pbeWithSHAAnd3-KeyTripleDES-CBC, MAC with HMAC-SHA-1, for older Android, macOS, iOS
 *   and Windows Server 2016, which call a modern file's password "incorrect". 2048 rounds over
 *   SHA-1 protect no password that a person chose, so this format takes generated ones only.
 */

import {
  TAG,
  bmpString,
  contextConstructed,
  contextPrimitive,
  integer,
  objectIdentifier,
  octetString,
  readExactly,
  sequence,
  setOf,
} from './der.js';
import { FORMATS, Pace, prepareMac } from './pkcs12-formats.js';
import { sha256 } from './sha2.js';

const PFX_VERSION = 3;
const LOCAL_KEY_ID_BYTES = 20;

/** RFC 2985, pkcs-9-ub-friendlyName. */
const MAX_FRIENDLY_NAME_LENGTH = 255;

const PASSWORD_GROUPS = 5;
const PASSWORD_GROUP_LENGTH = 4;

/** 32 symbols, 5 bits each without bias; no 0 and O, no 1 and I. */
const PASSWORD_ALPHABET = '23456789ABCDEFGHJKLMNPQRSTUVWXYZ';
const GENERATED_PASSWORD = new RegExp(
  `^[${PASSWORD_ALPHABET}]{${PASSWORD_GROUP_LENGTH}}` +
    `(?:-[${PASSWORD_ALPHABET}]{${PASSWORD_GROUP_LENGTH}}){${PASSWORD_GROUPS - 1}}$`,
);
const PRINTABLE_ASCII = /^[\x20-\x7e]+$/;

const OID = Object.freeze({
  data: '1.2.840.113549.1.7.1',
  encryptedData: '1.2.840.113549.1.7.6',
  shroudedKeyBag: '1.2.840.113549.1.12.10.1.2',
  certBag: '1.2.840.113549.1.12.10.1.3',
  x509Certificate: '1.2.840.113549.1.9.22.1',
  friendlyName: '1.2.840.113549.1.9.20',
  localKeyId: '1.2.840.113549.1.9.21',
});

/** @typedef {import('./pkcs12-formats.js').Encrypted} Encrypted */

/**
 * @typedef {object} PKCS12Contents
 * @property {Uint8Array} privateKey DER, unencrypted PKCS#8
 * @property {Uint8Array} certificate DER, for that key
 * @property {Uint8Array[]} caCertificates DER each, in any order, may be empty
 * @property {string} friendlyName shown by importers; empty for none
 * @property {string} password printable ASCII, not empty; see `generatePassword`
 * @property {'modern' | 'compatible'} [format] modern when left out
 * @property {(fraction: number) => void} [onProgress] called now and then with 0 to 1
 */

/** The password cannot be used for this file; `code` says why. */
export class BadPassword extends Error {
  /** @param {'password-not-printable-ascii' | 'password-not-generated'} code */
  constructor(code) {
    super(`the password is refused: ${code}`);
    this.name = 'BadPassword';
    this.code = code;
  }
}

/**
 * Make a password of 20 random symbols (100 bits) in groups, such as `K7QM-2XHD-…`.
 * @returns {string}
 */
export function generatePassword() {
  const symbols = Array.from(
    crypto.getRandomValues(new Uint8Array(PASSWORD_GROUPS * PASSWORD_GROUP_LENGTH)),
    (byte) => PASSWORD_ALPHABET[byte % PASSWORD_ALPHABET.length],
  );
  const groups = Array.from({ length: PASSWORD_GROUPS }, (_, index) =>
    symbols.slice(index * PASSWORD_GROUP_LENGTH, (index + 1) * PASSWORD_GROUP_LENGTH).join(''),
  );
  return groups.join('-');
}

/**
 * Refuse passwords that importers would not read alike: PBES2 takes UTF-8 and the MAC takes
 * UTF-16, so beyond ASCII they disagree; macOS refuses empty ones.
 * @param {string} password
 * @param {'modern' | 'compatible'} format
 * @throws {BadPassword}
 */
export function checkPassword(password, format = 'modern') {
  if (!PRINTABLE_ASCII.test(password)) throw new BadPassword('password-not-printable-ascii');
  if (format === 'compatible' && !GENERATED_PASSWORD.test(password)) {
    throw new BadPassword('password-not-generated');
  }
}

/** @param {string} oid @param {Uint8Array} value @returns {Uint8Array} PKCS12Attribute */
function attribute(oid, value) {
  return sequence(objectIdentifier(oid), setOf(value));
}

/**
 * @param {string} oid of the bag type
 * @param {Uint8Array} value
 * @param {Uint8Array[]} attributes
 * @returns {Uint8Array} SafeBag (RFC 7292 §4.2)
 */
function safeBag(oid, value, attributes) {
  const optional = attributes.length === 0 ? [] : [setOf(...attributes)];
  return sequence(objectIdentifier(oid), contextConstructed(0, value), ...optional);
}

/** @param {Uint8Array} certificate @param {Uint8Array[]} attributes @returns {Uint8Array} */
function certBag(certificate, attributes) {
  const x509 = contextConstructed(0, octetString(certificate));
  return safeBag(OID.certBag, sequence(objectIdentifier(OID.x509Certificate), x509), attributes);
}

/** @param {Uint8Array} content @returns {Uint8Array} ContentInfo of type data */
function dataContent(content) {
  return sequence(objectIdentifier(OID.data), contextConstructed(0, octetString(content)));
}

/** @param {Encrypted} encrypted @returns {Uint8Array} ContentInfo of type encryptedData */
function encryptedContent({ algorithm, ciphertext }) {
  const info = sequence(objectIdentifier(OID.data), algorithm, contextPrimitive(0, ciphertext));
  const encryptedData = sequence(integer(0), info);
  return sequence(objectIdentifier(OID.encryptedData), contextConstructed(0, encryptedData));
}

/**
 * What the key and its certificate are tied together with. Any octets do (RFC 2985 §5.5.2), as long
 * as both bags have the same; importers commonly expect 20 bytes over the certificate.
 * @param {Uint8Array} certificate
 * @param {string} friendlyName
 * @returns {Uint8Array[]}
 */
function sharedAttributes(certificate, friendlyName) {
  const keyId = sha256(certificate).subarray(0, LOCAL_KEY_ID_BYTES);
  const attributes = [attribute(OID.localKeyId, octetString(keyId))];
  if (friendlyName !== '') attributes.push(attribute(OID.friendlyName, bmpString(friendlyName)));
  return attributes;
}

/**
 * Build a PKCS#12 file.
 *
 * The page stays responsive: the work on the main thread pauses every 16 ms.
 * @param {PKCS12Contents} contents
 * @returns {Promise<Uint8Array>} DER, one PFX; MIME type application/x-pkcs12
 * @throws {BadPassword} not printable ASCII or empty; not a generated one in the compatible format
 * @throws {BadDER} the key or a certificate is not exactly one DER SEQUENCE
 * @throws {RangeError} the friendly name is too long
 */
export async function createPKCS12({
  privateKey,
  certificate,
  caCertificates,
  friendlyName,
  password,
  format: formatName = 'modern',
  onProgress,
}) {
  checkPassword(password, formatName);
  if (friendlyName.length > MAX_FRIENDLY_NAME_LENGTH) throw new RangeError('friendlyName too long');
  for (const der of [privateKey, certificate, ...caCertificates]) readExactly(der, TAG.SEQUENCE);

  const format = FORMATS[formatName];
  const pace = new Pace(format.digests, onProgress);
  const shared = sharedAttributes(certificate, friendlyName);
  const certificateBags = sequence(
    certBag(certificate, shared),
    ...caCertificates.map((caCertificate) => certBag(caCertificate, [])),
  );
  // At once: PBKDF2 works on other threads while this one derives the key of the MAC.
  const [encryptedKey, encryptedCertificates, authenticate] = await Promise.all([
    format.encrypt(password, privateKey, pace),
    format.encrypt(password, certificateBags, pace),
    prepareMac(format, password, pace),
  ]);

  const shroudedKey = sequence(encryptedKey.algorithm, octetString(encryptedKey.ciphertext));
  const keyBags = sequence(safeBag(OID.shroudedKeyBag, shroudedKey, shared));
  const authenticatedSafe = sequence(encryptedContent(encryptedCertificates), dataContent(keyBags));
  const macData = await authenticate(authenticatedSafe);
  onProgress?.(1);
  return sequence(integer(PFX_VERSION), dataContent(authenticatedSafe), macData);
}
