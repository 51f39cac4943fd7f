/**
 * The cryptography of a PKCS#12 file (RFC 7292): what is derived from the password, how the bags
 * are encrypted, how the whole is authenticated. Two formats, see `FORMATS`; pkcs12.js writes the
 * file around them.
 */

import {
  concat,
  integer,
  nullValue,
  objectIdentifier,
  octetString,
  sequence,
  utf16,
} from './der.js';
import { encrypt as encryptTripleDES } from './des3.js';
import { sha256, sha256Chain } from './sha2.js';

/**
 * For each of the three derivations (key, certificates, MAC). The weakest of them is what an
 * attacker guesses against, so they are equal. .NET refuses more than 300 000 for one
 * (dotnet/runtime Pkcs12LoaderLimits.cs) and, in older versions, 600 000 in total.
 */
export const MODERN_ROUNDS = 150_000;

/** What OpenSSL wrote for twenty years, and all that old importers were ever tested with. */
export const COMPATIBLE_ROUNDS = 2048;

const SALT_BYTES = 16;
const COMPATIBLE_SALT_BYTES = 8;
const AES_IV_BYTES = 16;
const AES_KEY_BITS = 256;
const TRIPLE_DES_KEY_BYTES = 24;
const TRIPLE_DES_IV_BYTES = 8;

/** The v of RFC 7292 B.2: the block length of SHA-1 and of SHA-256. */
const HASH_BLOCK_BYTES = 64;

/** RFC 7292 B.3: what the derived bytes are for. */
const PURPOSE_KEY = 1;
const PURPOSE_IV = 2;
const PURPOSE_MAC = 3;

/** A frame of a 60 Hz screen: after so long the page gets its turn. */
const SLICE_MS = 16;

/** Rounds between two looks at the clock: about a millisecond. */
const ROUNDS_PER_LOOK = 512;

const OID = Object.freeze({
  pbes2: '1.2.840.113549.1.5.13',
  pbkdf2: '1.2.840.113549.1.5.12',
  hmacWithSHA256: '1.2.840.113549.2.9',
  aes256CBC: '2.16.840.1.101.3.4.1.42',
  pbeWithSHAAnd3KeyTripleDES: '1.2.840.113549.1.12.1.3',
  sha1: '1.3.14.3.2.26',
  sha256: '2.16.840.1.101.3.4.2.1',
});

/**
 * What differs between the two formats.
 * @typedef {object} Format
 * @property {number} rounds of each derivation
 * @property {number} digests that a whole file needs on the main thread, for the progress
 * @property {number} saltBytes
 * @property {'SHA-256' | 'SHA-1'} macHash
 * @property {string} macHashOID
 * @property {number} macKeyBytes
 * @property {(message: Uint8Array, pace: Pace) => Promise<Uint8Array>} hashRepeatedly H^r of B.2
 * @property {(password: string, plain: Uint8Array, pace: Pace) => Promise<Encrypted>} encrypt
 *
 * @typedef {object} Encrypted
 * @property {Uint8Array} algorithm DER, AlgorithmIdentifier
 * @property {Uint8Array} ciphertext
 */

/** Shares the main thread with the page: long loops tell it how far they are. */
export class Pace {
  #done = 0;

  #sliceStart = performance.now();

  /** @param {number} total rounds to come @param {((fraction: number) => void)} [onProgress] */
  constructor(total, onProgress) {
    this.total = total;
    this.onProgress = onProgress;
  }

  /**
   * Count rounds; when the slice is used up, report and let the page work.
   * @param {number} rounds
   */
  async advance(rounds) {
    this.#done += rounds;
    if (performance.now() - this.#sliceStart < SLICE_MS) return;
    this.onProgress?.(Math.min(this.#done / this.total, 1));
    await nextTask();
    this.#sliceStart = performance.now();
  }
}

/**
 * Resolves in a new task, after input and paint had their chance. A message, because browsers
 * delay nested timers to 4 ms and those of a hidden tab to a second.
 * @returns {Promise<void>}
 */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** @param {number} length @returns {Uint8Array} */
function randomBytes(length) {
  return crypto.getRandomValues(new Uint8Array(length));
}

/**
 * @param {Uint8Array} bytes
 * @param {number} multiple
 * @returns {Uint8Array} repeated and cut to whole blocks
 */
function repeatToBlocks(bytes, multiple) {
  const length = Math.ceil(bytes.length / multiple) * multiple;
  return Uint8Array.from({ length }, (_, index) => bytes[index % bytes.length]);
}

/**
 * I_j = (I_j + B + 1) mod 2^v for each block of I (RFC 7292 B.2 step 6C).
 * @param {Uint8Array} blocks changed
 * @param {Uint8Array} addend one block
 */
function addToEachBlock(blocks, addend) {
  for (let start = 0; start < blocks.length; start += HASH_BLOCK_BYTES) {
    let carry = 1;
    for (let i = HASH_BLOCK_BYTES - 1; i >= 0; i -= 1) {
      const sum = blocks[start + i] + addend[i] + carry;
      blocks[start + i] = sum;
      carry = sum >> 8;
    }
  }
}

/**
 * Derive key material from a password (RFC 7292 B.2).
 * @param {(message: Uint8Array) => Promise<Uint8Array>} hashRepeatedly H^r of B.2
 * @param {string} password
 * @param {Uint8Array} salt
 * @param {{purpose: number, length: number}} wanted
 * @returns {Promise<Uint8Array>}
 */
async function deriveBytes(hashRepeatedly, password, salt, { purpose, length }) {
  const diversifier = new Uint8Array(HASH_BLOCK_BYTES).fill(purpose);
  // B.1: the password is a BMPString with two more zero bytes, its terminator.
  const secret = utf16(`${password}\0`);
  const blocks = concat(
    repeatToBlocks(salt, HASH_BLOCK_BYTES),
    repeatToBlocks(secret, HASH_BLOCK_BYTES),
  );
  let derived = new Uint8Array(0);
  while (derived.length < length) {
    const digest = await hashRepeatedly(concat(diversifier, blocks));
    derived = concat(derived, digest);
    addToEachBlock(blocks, repeatToBlocks(digest, HASH_BLOCK_BYTES));
  }
  return derived.slice(0, length);
}

/** @param {Uint8Array} message @param {Pace} pace @returns {Promise<Uint8Array>} */
async function hashSHA256(message, pace) {
  let digest = sha256(message);
  for (let left = MODERN_ROUNDS - 1; left > 0; left -= ROUNDS_PER_LOOK) {
    const rounds = Math.min(left, ROUNDS_PER_LOOK);
    digest = sha256Chain(digest, rounds);
    await pace.advance(rounds);
  }
  return digest;
}

/**
 * One promise per round is bearable here: 14 336 digests, a whole file, take 0.4 s in Firefox 153.
 * @param {Uint8Array} message
 * @param {Pace} pace
 * @returns {Promise<Uint8Array>}
 */
async function hashSHA1(message, pace) {
  let digest = message;
  for (let round = 0; round < COMPATIBLE_ROUNDS; round += 1) {
    digest = await crypto.subtle.digest('SHA-1', digest);
    await pace.advance(1);
  }
  return new Uint8Array(digest);
}

/** @param {string} password @param {Uint8Array} salt @returns {Promise<CryptoKey>} for AES-CBC */
async function deriveAESKey(password, salt) {
  const secret = new TextEncoder().encode(password);
  const key = await crypto.subtle.importKey('raw', secret, 'PBKDF2', false, ['deriveKey']);
  return crypto.subtle.deriveKey(
    { name: 'PBKDF2', hash: 'SHA-256', salt, iterations: MODERN_ROUNDS },
    key,
    { name: 'AES-CBC', length: AES_KEY_BITS },
    false,
    ['encrypt'],
  );
}

/**
 * PBES2 (RFC 8018 §6.2).
 * @param {string} password
 * @param {Uint8Array} plain
 * @returns {Promise<Encrypted>}
 */
async function encryptPBES2(password, plain) {
  const salt = randomBytes(SALT_BYTES);
  const iv = randomBytes(AES_IV_BYTES);
  const key = await deriveAESKey(password, salt);
  const ciphertext = await crypto.subtle.encrypt({ name: 'AES-CBC', iv }, key, plain);
  const derivation = sequence(
    objectIdentifier(OID.pbkdf2),
    sequence(
      octetString(salt),
      integer(MODERN_ROUNDS),
      sequence(objectIdentifier(OID.hmacWithSHA256), nullValue()),
    ),
  );
  const scheme = sequence(objectIdentifier(OID.aes256CBC), octetString(iv));
  return {
    algorithm: sequence(objectIdentifier(OID.pbes2), sequence(derivation, scheme)),
    ciphertext: new Uint8Array(ciphertext),
  };
}

/**
 * The old scheme (RFC 7292 appendix C).
 * @param {string} password
 * @param {Uint8Array} plain
 * @param {Pace} pace
 * @returns {Promise<Encrypted>}
 */
async function encryptPBES1(password, plain, pace) {
  const salt = randomBytes(COMPATIBLE_SALT_BYTES);
  const derive = (purpose, length) =>
    deriveBytes((message) => hashSHA1(message, pace), password, salt, { purpose, length });
  const key = await derive(PURPOSE_KEY, TRIPLE_DES_KEY_BYTES);
  const iv = await derive(PURPOSE_IV, TRIPLE_DES_IV_BYTES);
  return {
    algorithm: sequence(
      objectIdentifier(OID.pbeWithSHAAnd3KeyTripleDES),
      sequence(octetString(salt), integer(COMPATIBLE_ROUNDS)),
    ),
    ciphertext: encryptTripleDES(key, iv, plain),
  };
}

/** @type {Readonly<Record<'modern' | 'compatible', Format>>} */
export const FORMATS = Object.freeze({
  modern: {
    rounds: MODERN_ROUNDS,
    // PBKDF2 runs inside WebCrypto, off the main thread: only the MAC key counts here.
    digests: MODERN_ROUNDS,
    saltBytes: SALT_BYTES,
    macHash: 'SHA-256',
    macHashOID: OID.sha256,
    macKeyBytes: 32,
    hashRepeatedly: hashSHA256,
    encrypt: encryptPBES2,
  },
  compatible: {
    rounds: COMPATIBLE_ROUNDS,
    // Two digests for a 3DES key and one for its IV, twice; one for the MAC key.
    digests: 7 * COMPATIBLE_ROUNDS,
    saltBytes: COMPATIBLE_SALT_BYTES,
    macHash: 'SHA-1',
    macHashOID: OID.sha1,
    macKeyBytes: 20,
    hashRepeatedly: hashSHA1,
    encrypt: encryptPBES1,
  },
});

/**
 * @param {Format} format
 * @param {Uint8Array} key
 * @param {Uint8Array} content
 * @returns {Promise<Uint8Array>} HMAC
 */
async function computeMac(format, key, content) {
  const algorithm = { name: 'HMAC', hash: format.macHash };
  const hmacKey = await crypto.subtle.importKey('raw', key, algorithm, false, ['sign']);
  return new Uint8Array(await crypto.subtle.sign('HMAC', hmacKey, content));
}

/**
 * Start deriving the key of the MAC; the result authenticates any content with it.
 * @param {Format} format
 * @param {string} password
 * @param {Pace} pace
 * @returns {Promise<(content: Uint8Array) => Promise<Uint8Array>>} content to MacData, DER
 *   (RFC 7292 §4)
 */
export async function prepareMac(format, password, pace) {
  const salt = randomBytes(format.saltBytes);
  const hashRepeatedly = (message) => format.hashRepeatedly(message, pace);
  const wanted = { purpose: PURPOSE_MAC, length: format.macKeyBytes };
  const key = await deriveBytes(hashRepeatedly, password, salt, wanted);
  const algorithm = sequence(objectIdentifier(format.macHashOID), nullValue());
  return async (content) => {
    const mac = octetString(await computeMac(format, key, content));
    return sequence(sequence(algorithm, mac), octetString(salt), integer(format.rounds));
  };
}
