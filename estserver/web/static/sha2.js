/**
 * SHA-256 (FIPS 180-4) that answers at once, for one purpose: the long chain of digests in the
 * key derivation of a PKCS#12 MAC (RFC 7292 appendix B.2).
 *
 * WebCrypto has no synchronous digest, and no function for that chain. With one promise per round
 * 150 000 rounds take 15 s in Firefox 153 and 1.1 s in Chromium 156; here they take 0.3 s in both
 * (two shared cores).
 */

const BLOCK_BYTES = 64;
const DIGEST_WORDS = 8;
const LENGTH_BYTES = 8;

/** FIPS 180-4 §4.2.2. */
const ROUND_CONSTANTS = Int32Array.of(
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
);

/** FIPS 180-4 §5.3.3. */
const INITIAL_STATE = Int32Array.of(
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
);

/**
 * Mix one block into the state (FIPS 180-4 §6.2.2).
 * @param {Int32Array} state 8 words, changed
 * @param {Int32Array} schedule 64 words: the block in the first 16, the rest is overwritten
 */
function compress(state, schedule) {
  const w = schedule;
  for (let t = 16; t < 64; t += 1) {
    const x = w[t - 15];
    const y = w[t - 2];
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[t] = (w[t - 16] + s0 + w[t - 7] + s1) | 0;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let t = 0; t < 64; t += 1) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND_CONSTANTS[t] + w[t]) | 0;
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

/** @param {Int32Array} words @returns {Uint8Array} big-endian */
function toBytes(words) {
  const bytes = new Uint8Array(words.length * 4);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => view.setInt32(index * 4, word));
  return bytes;
}

/**
 * @param {Uint8Array} message
 * @returns {Uint8Array} whole blocks: message, 1 bit, zeros, bit length
 */
function pad(message) {
  const blocks = Math.ceil((message.length + 1 + LENGTH_BYTES) / BLOCK_BYTES);
  const padded = new Uint8Array(blocks * BLOCK_BYTES);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - LENGTH_BYTES, BigInt(message.length) * 8n);
  return padded;
}

/**
 * SHA-256 of a message.
 * @param {Uint8Array} message
 * @returns {Uint8Array} 32 bytes
 */
export function sha256(message) {
  const view = new DataView(pad(message).buffer);
  const state = INITIAL_STATE.slice();
  const schedule = new Int32Array(64);
  for (let offset = 0; offset < view.byteLength; offset += BLOCK_BYTES) {
    for (let t = 0; t < 16; t += 1) schedule[t] = view.getInt32(offset + t * 4);
    compress(state, schedule);
  }
  return toBytes(state);
}

/**
 * SHA-256 of the SHA-256 of … a digest, `rounds` times.
 * @param {Uint8Array} digest 32 bytes
 * @param {number} rounds
 * @returns {Uint8Array} 32 bytes
 */
export function sha256Chain(digest, rounds) {
  const view = new DataView(digest.buffer, digest.byteOffset, digest.byteLength);
  const state = Int32Array.from({ length: DIGEST_WORDS }, (_, index) => view.getInt32(index * 4));
  const schedule = new Int32Array(64);
  for (let round = 0; round < rounds; round += 1) {
    // A digest and its padding are one block, so no message is ever laid out.
    schedule.set(state);
    schedule.fill(0, DIGEST_WORDS, 16);
    schedule[DIGEST_WORDS] = 0x80000000;
    schedule[15] = DIGEST_WORDS * 32;
    state.set(INITIAL_STATE);
    compress(state, schedule);
  }
  return toBytes(state);
}
