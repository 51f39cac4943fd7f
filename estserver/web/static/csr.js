/**
 * A key pair made by the browser, and the PKCS#10 request (RFC 2986) that proves its possession.
 *
 * The request carries the public key and nothing else: its subject and its attributes are empty,
 * because the names of the certificate come from the registration on the server.
 */

import {
  bitString,
  contextConstructed,
  integer,
  nullValue,
  objectIdentifier,
  sequence,
  unsignedInteger,
} from './der.js';

const SHA256_WITH_RSA = '1.2.840.113549.1.1.11';
const ECDSA_WITH_SHA256 = '1.2.840.10045.4.3.2';
const ECDSA_WITH_SHA384 = '1.2.840.10045.4.3.3';
const ECDSA_WITH_SHA512 = '1.2.840.10045.4.3.4';

const RSA_PUBLIC_EXPONENT = Uint8Array.of(1, 0, 1);

/** @typedef {'rsa-2048' | 'rsa-3072' | 'rsa-4096' | 'ec-p256' | 'ec-p384' | 'ec-p521'} KeyType */

/** @param {number} bits @returns {RsaHashedKeyGenParams} */
function rsa(bits) {
  return {
    name: 'RSASSA-PKCS1-v1_5',
    modulusLength: bits,
    publicExponent: RSA_PUBLIC_EXPONENT,
    hash: 'SHA-256',
  };
}

const GENERATION_PARAMETERS = new Map([
  ['rsa-2048', rsa(2048)],
  ['rsa-3072', rsa(3072)],
  ['rsa-4096', rsa(4096)],
  ['ec-p256', { name: 'ECDSA', namedCurve: 'P-256' }],
  ['ec-p384', { name: 'ECDSA', namedCurve: 'P-384' }],
  ['ec-p521', { name: 'ECDSA', namedCurve: 'P-521' }],
]);

/** Each curve with the hash of its own strength. */
const ECDSA_SIGNATURES = new Map([
  ['P-256', { hash: 'SHA-256', algorithm: ECDSA_WITH_SHA256 }],
  ['P-384', { hash: 'SHA-384', algorithm: ECDSA_WITH_SHA384 }],
  ['P-521', { hash: 'SHA-512', algorithm: ECDSA_WITH_SHA512 }],
]);

/** The key types `generateKeyPair` knows. @type {readonly KeyType[]} */
export const KEY_TYPES = Object.freeze([...GENERATION_PARAMETERS.keys()]);

/** The key type is not one of `KEY_TYPES`, or this browser cannot make it. */
export class UnsupportedKeyType extends Error {
  /** @param {string} keyType @param {ErrorOptions} [options] */
  constructor(keyType, options) {
    super(`keys of type ${keyType} cannot be made here`, options);
    this.name = 'UnsupportedKeyType';
    this.code = 'unsupported-key-type';
  }
}

/** WebCrypto is missing: the page was not loaded over https (or from localhost). */
export class InsecureContext extends Error {
  constructor() {
    super('WebCrypto works only on pages loaded over https');
    this.name = 'InsecureContext';
    this.code = 'insecure-context';
  }
}

/**
 * Make a key pair that can be stored in IndexedDB and exported into a PKCS#12 file.
 *
 * Takes under 10 ms for the curves and up to several seconds for rsa-4096, off the main thread.
 * @param {KeyType} keyType
 * @returns {Promise<CryptoKeyPair>}
 * @throws {UnsupportedKeyType} unknown here or to this browser
 * @throws {InsecureContext} no WebCrypto on this page
 */
export async function generateKeyPair(keyType) {
  const parameters = GENERATION_PARAMETERS.get(keyType);
  if (parameters === undefined) throw new UnsupportedKeyType(keyType);
  if (globalThis.crypto?.subtle === undefined) throw new InsecureContext();
  try {
    return await crypto.subtle.generateKey(parameters, true, ['sign', 'verify']);
  } catch (cause) {
    throw new UnsupportedKeyType(keyType, { cause });
  }
}

/**
 * The private key for `createPKCS12`.
 * @param {CryptoKeyPair} keyPair
 * @returns {Promise<Uint8Array>} DER, unencrypted PKCS#8 (RFC 5208): never send or store it
 */
export async function exportPrivateKey(keyPair) {
  return new Uint8Array(await crypto.subtle.exportKey('pkcs8', keyPair.privateKey));
}

/**
 * The public key, to compare with the one in an issued certificate.
 * @param {CryptoKeyPair} keyPair
 * @returns {Promise<Uint8Array>} DER, SubjectPublicKeyInfo
 */
export async function exportPublicKey(keyPair) {
  return new Uint8Array(await crypto.subtle.exportKey('spki', keyPair.publicKey));
}

/**
 * WebCrypto signs with r and s side by side, X.509 wants Ecdsa-Sig-Value (RFC 3279 §2.2.3).
 * @param {Uint8Array} raw r and s, of equal length
 * @returns {Uint8Array} DER
 */
function ecdsaSignatureValue(raw) {
  const half = raw.length / 2;
  return sequence(unsignedInteger(raw.subarray(0, half)), unsignedInteger(raw.subarray(half)));
}

/**
 * @param {CryptoKey} privateKey
 * @param {Uint8Array} message
 * @returns {Promise<{algorithm: Uint8Array, signature: Uint8Array}>} AlgorithmIdentifier DER, and
 *   the signature as it stands in a BIT STRING
 */
async function sign(privateKey, message) {
  const { name } = privateKey.algorithm;
  if (name === 'ECDSA') {
    const { hash, algorithm } = ECDSA_SIGNATURES.get(privateKey.algorithm.namedCurve);
    const raw = await crypto.subtle.sign({ name, hash }, privateKey, message);
    return {
      // RFC 5758 §3.2: the parameters field MUST be omitted for ECDSA.
      algorithm: sequence(objectIdentifier(algorithm)),
      signature: ecdsaSignatureValue(new Uint8Array(raw)),
    };
  }
  return {
    // RFC 4055 §5: for PKCS #1 v1.5 the parameters MUST be NULL.
    algorithm: sequence(objectIdentifier(SHA256_WITH_RSA), nullValue()),
    signature: new Uint8Array(await crypto.subtle.sign({ name }, privateKey, message)),
  };
}

/**
 * Make the certificate request for a key pair of `generateKeyPair`.
 * @param {CryptoKeyPair} keyPair
 * @returns {Promise<Uint8Array>} DER, one PKCS#10 CertificationRequest (RFC 2986 §4.2)
 */
export async function createCSR(keyPair) {
  const version = integer(0);
  const subject = sequence();
  const attributes = contextConstructed(0);
  const info = sequence(version, subject, await exportPublicKey(keyPair), attributes);
  const { algorithm, signature } = await sign(keyPair.privateKey, info);
  return sequence(info, algorithm, bitString(signature));
}

/**
 * @param {Uint8Array} csr DER
 * @returns {string} PEM (RFC 7468 §7), for a form field or a file
 */
export function toPEM(csr) {
  const base64 = btoa(String.fromCharCode(...csr));
  const lines = base64.match(/.{1,64}/g).join('\n');
  return `-----BEGIN CERTIFICATE REQUEST-----\n${lines}\n-----END CERTIFICATE REQUEST-----\n`;
}
