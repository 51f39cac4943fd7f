/**
 * Triple DES encryption in CBC mode (FIPS 46-3, SP 800-67), only for the compatible PKCS#12 file.
 *
 * WebCrypto never had DES, and the importers this file is for (older Android, macOS, iOS, Windows
 * Server 2016) read nothing better. It must not protect anything but a file whose password was
 * generated. The table look-ups are not constant in time: what is encrypted is the user's own file,
 * once, on the user's own machine.
 *
 * Bits are numbered as in the standard: 1 is the most significant.
 */

const BLOCK_BYTES = 8;
const KEY_BYTES = 24;
const ROUNDS = 16;
const BOXES = 8;

/** IP: the even bits of all bytes, then the odd ones, last byte first. */
const INITIAL_PERMUTATION = [58, 60, 62, 64, 57, 59, 61, 63].flatMap((first) =>
  Array.from({ length: 8 }, (_, step) => first - 8 * step),
);

/** IP^-1. */
const FINAL_PERMUTATION = Array.from(
  { length: 64 },
  (_, index) => INITIAL_PERMUTATION.indexOf(index + 1) + 1,
);

/** PC-1: C0, then D0; the parity bits 8, 16, … 64 are dropped. */
const PERMUTED_CHOICE_1 = [
  57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60,
  52, 44, 36, 63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21,
  13, 5, 28, 20, 12, 4,
];

/** PC-2. */
const PERMUTED_CHOICE_2 = [
  14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2, 41, 52,
  31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
];

const KEY_ROTATIONS = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1];

/** P. */
const ROUND_PERMUTATION = [
  16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10, 2, 8, 24, 14, 32, 27, 3, 9, 19, 13,
  30, 6, 22, 11, 4, 25,
];

/** S1 to S8, each four rows of sixteen, one hexadecimal digit per value. */
const SUBSTITUTIONS = [
  'e4d12fb83a6c5907 0f74e2d1a6cb9538 41e8d62bfc973a50 fc8249175b3ea06d',
  'f18e6b34972dc05a 3d47f28ec01a69b5 0e7ba4d158c6932f d8a13f42b67c05e9',
  'a09e63f51dc7b428 d709346a285ecbf1 d6498f30b12c5ae7 1ad069874fe3b52c',
  '7de3069a1285bc4f d8b56f03472c1ae9 a690cb7df13e5284 3f06a1d8945bc72e',
  '2c417ab6853fd0e9 eb2c47d150fa3986 421bad78f9c5630e b8c71e2d6f09a453',
  'c1af92680d34e75b af427c9561de0b38 9ef528c3704a1db6 432c95fabe17608d',
  '4b2ef08d3c975a61 d0b7491ae35c2f86 14bdc37eaf680592 6bd814a7950fe23c',
  'd2846fb1a93e50c7 1fd8a374c56b0e92 7b419ce206adf358 21e74a8dfc90356b',
];

/**
 * @param {number[]} table positions of bits
 * @param {(position: number) => number} bit
 * @returns {number[]} the bits in the order of the table
 */
function permute(table, bit) {
  return table.map(bit);
}

/** @param {number[]} bits at most 32 @returns {number} */
function toNumber(bits) {
  return bits.reduce((value, bit) => (value << 1) | bit, 0);
}

/** @param {number} value 32 bits @param {number} position 1 to 32 @returns {number} */
function bitOf(value, position) {
  return (value >>> (32 - position)) & 1;
}

/** S-box and P in one look-up: one table of 64 words for each box, the round's work done once. */
const SUBSTITUTED_AND_PERMUTED = SUBSTITUTIONS.map((digits, box) => {
  const values = Array.from(digits.replaceAll(' ', ''), (digit) => Number.parseInt(digit, 16));
  return Int32Array.from({ length: 64 }, (_, input) => {
    const row = ((input >> 4) & 2) | (input & 1);
    const column = (input >> 1) & 15;
    const word = values[row * 16 + column] << (28 - 4 * box);
    return toNumber(permute(ROUND_PERMUTATION, (position) => bitOf(word, position)));
  });
});

/**
 * @param {Uint8Array} key 8 bytes, parity ignored
 * @returns {number[][]} for each round eight subkeys of six bits
 */
function scheduleKey(key) {
  const keyBit = (position) => (key[(position - 1) >> 3] >> (7 - ((position - 1) & 7))) & 1;
  const bits = permute(PERMUTED_CHOICE_1, keyBit);
  let left = bits.slice(0, 28);
  let right = bits.slice(28);
  return KEY_ROTATIONS.map((count) => {
    left = [...left.slice(count), ...left.slice(0, count)];
    right = [...right.slice(count), ...right.slice(0, count)];
    const both = [...left, ...right];
    const subkey = permute(PERMUTED_CHOICE_2, (position) => both[position - 1]);
    return Array.from({ length: BOXES }, (_, box) => toNumber(subkey.slice(box * 6, box * 6 + 6)));
  });
}

/** @param {number} half R @param {number[]} subkeys @returns {number} f(R, K) */
function mix(half, subkeys) {
  let mixed = 0;
  for (let box = 0; box < BOXES; box += 1) {
    // E gives each box six neighbouring bits, starting one before its four: rotate them to the top.
    const turn = (4 * box + 31) & 31;
    const rotated = (half << turn) | (half >>> (32 - turn));
    mixed |= SUBSTITUTED_AND_PERMUTED[box][(rotated >>> 26) ^ subkeys[box]];
  }
  return mixed;
}

/**
 * @param {[number, number]} halves L and R, after IP
 * @param {number[][]} roundKeys
 * @returns {[number, number]} R16 and L16, before IP^-1
 */
function runRounds([left, right], roundKeys) {
  for (let round = 0; round < ROUNDS; round += 1) {
    [left, right] = [right, left ^ mix(right, roundKeys[round])];
  }
  return [right, left];
}

/** @param {[number, number]} halves @param {number[]} table @returns {[number, number]} */
function permuteBlock([left, right], table) {
  const bits = permute(table, (position) =>
    position <= 32 ? bitOf(left, position) : bitOf(right, position - 32),
  );
  return [toNumber(bits.slice(0, 32)), toNumber(bits.slice(32))];
}

/**
 * @param {Uint8Array} data
 * @returns {Uint8Array} whole blocks; RFC 8018 §6.1.1: n bytes of value n
 */
function pad(data) {
  const count = BLOCK_BYTES - (data.length % BLOCK_BYTES);
  const padded = new Uint8Array(data.length + count).fill(count, data.length);
  padded.set(data);
  return padded;
}

/**
 * Encrypt whole blocks with three keys, encrypt-decrypt-encrypt, in CBC mode.
 * @param {Uint8Array} key 24 bytes
 * @param {Uint8Array} iv 8 bytes
 * @param {Uint8Array} blocks a multiple of 8 bytes
 * @returns {Uint8Array} as long as `blocks`
 * @throws {RangeError} a length is wrong
 */
export function encryptBlocks(key, iv, blocks) {
  if (key.length !== KEY_BYTES || iv.length !== BLOCK_BYTES || blocks.length % BLOCK_BYTES !== 0) {
    throw new RangeError('3DES takes a key of 24 bytes, an IV of 8 and whole blocks');
  }
  const encryptFirst = scheduleKey(key.subarray(0, 8));
  // Decryption is the same walk with the round keys in reverse.
  const decryptSecond = scheduleKey(key.subarray(8, 16)).reverse();
  const encryptThird = scheduleKey(key.subarray(16, 24));
  const input = new DataView(blocks.buffer, blocks.byteOffset, blocks.byteLength);
  const output = new DataView(new ArrayBuffer(blocks.length));
  const ivView = new DataView(iv.buffer, iv.byteOffset, iv.byteLength);
  let chained = [ivView.getInt32(0), ivView.getInt32(4)];
  for (let offset = 0; offset < blocks.length; offset += BLOCK_BYTES) {
    const left = input.getInt32(offset) ^ chained[0];
    const right = input.getInt32(offset + 4) ^ chained[1];
    // IP^-1 and IP between the three passes cancel out.
    let halves = permuteBlock([left, right], INITIAL_PERMUTATION);
    halves = runRounds(halves, encryptFirst);
    halves = runRounds(halves, decryptSecond);
    halves = runRounds(halves, encryptThird);
    chained = permuteBlock(halves, FINAL_PERMUTATION);
    output.setInt32(offset, chained[0]);
    output.setInt32(offset + 4, chained[1]);
  }
  return new Uint8Array(output.buffer);
}

/**
 * Encrypt a message of any length: padded, then as `encryptBlocks`.
 * @param {Uint8Array} key 24 bytes
 * @param {Uint8Array} iv 8 bytes
 * @param {Uint8Array} message
 * @returns {Uint8Array}
 * @throws {RangeError} a length is wrong
 */
export function encrypt(key, iv, message) {
  return encryptBlocks(key, iv, pad(message));
}
