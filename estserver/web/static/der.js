/**
 * DER (ITU-T X.690): the few types that a CSR and a PKCS#12 file are written with, and a strict
 * reader of one element.
 *
 * Every writer returns the whole element, tag and length included, so that values nest as they
 * read: `sequence(integer(0), octetString(salt))`.
 */

export const TAG = Object.freeze({
  INTEGER: 0x02,
  BIT_STRING: 0x03,
  OCTET_STRING: 0x04,
  NULL: 0x05,
  OBJECT_IDENTIFIER: 0x06,
  UTF8_STRING: 0x0c,
  PRINTABLE_STRING: 0x13,
  IA5_STRING: 0x16,
  BMP_STRING: 0x1e,
  SEQUENCE: 0x30,
  SET: 0x31,
  CONTEXT_PRIMITIVE: 0x80,
  CONTEXT_CONSTRUCTED: 0xa0,
});

/** Lengths from here on take the long form: a count of bytes, then the bytes (X.690 8.1.3.5). */
const FIRST_LONG_LENGTH = 0x80;

/** Four length bytes describe 4 GiB; a longer count is never honest here. */
const MAX_LENGTH_BYTES = 4;

/** The low five bits all set announce a tag of several bytes, which no certificate contains. */
const MULTI_BYTE_TAG = 0x1f;

/** The bytes are not the DER that was expected. */
export class BadDER extends Error {
  /** @param {string} detail what was wrong, for developers */
  constructor(detail) {
    super(detail);
    this.name = 'BadDER';
    this.code = 'bad-der';
  }
}

/**
 * Join byte strings.
 * @param {...Uint8Array} parts
 * @returns {Uint8Array}
 */
export function concat(...parts) {
  const joined = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    joined.set(part, offset);
    offset += part.length;
  }
  return joined;
}

/**
 * @param {number} length
 * @returns {Uint8Array} the length octets, in the shortest form (X.690 10.1)
 */
function encodeLength(length) {
  if (length < FIRST_LONG_LENGTH) return Uint8Array.of(length);
  const bytes = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Uint8Array.of(FIRST_LONG_LENGTH | bytes.length, ...bytes);
}

/**
 * @param {number} tag one identifier octet
 * @param {...Uint8Array} contents
 * @returns {Uint8Array}
 */
function element(tag, ...contents) {
  const content = concat(...contents);
  return concat(Uint8Array.of(tag), encodeLength(content.length), content);
}

/** SEQUENCE. @param {...Uint8Array} items DER elements @returns {Uint8Array} */
export function sequence(...items) {
  return element(TAG.SEQUENCE, ...items);
}

/** @param {Uint8Array} a @param {Uint8Array} b @returns {number} the order of X.690 11.6 */
function compareBytes(a, b) {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i += 1) {
    if (a[i] !== b[i]) return a[i] - b[i];
  }
  return a.length - b.length;
}

/**
 * SET OF, sorted as DER wants it.
 * @param {...Uint8Array} items DER elements
 * @returns {Uint8Array}
 */
export function setOf(...items) {
  return element(TAG.SET, ...[...items].sort(compareBytes));
}

/**
 * INTEGER from an unsigned big-endian byte string of any length, leading zeros allowed.
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
export function unsignedInteger(bytes) {
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start += 1;
  const digits = bytes.subarray(start);
  // A set top bit would read as negative (X.690 8.3.3): a zero goes before it. No bytes mean zero.
  const pad = digits.length === 0 || digits[0] >= 0x80 ? Uint8Array.of(0) : new Uint8Array(0);
  return element(TAG.INTEGER, pad, digits);
}

/** INTEGER. @param {number} value 0 to 2^32 - 1 @returns {Uint8Array} */
export function integer(value) {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  return unsignedInteger(bytes);
}

/** BIT STRING of whole bytes. @param {Uint8Array} bytes @returns {Uint8Array} */
export function bitString(bytes) {
  return element(TAG.BIT_STRING, Uint8Array.of(0), bytes);
}

/** OCTET STRING. @param {Uint8Array} bytes @returns {Uint8Array} */
export function octetString(bytes) {
  return element(TAG.OCTET_STRING, bytes);
}

/** NULL. @returns {Uint8Array} */
export function nullValue() {
  return element(TAG.NULL);
}

/** OBJECT IDENTIFIER. @param {string} dotted such as `2.5.4.3` @returns {Uint8Array} */
export function objectIdentifier(dotted) {
  const [first, second, ...rest] = dotted.split('.').map(Number);
  const bytes = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const digits = [arc % 128];
    for (let high = Math.floor(arc / 128); high > 0; high = Math.floor(high / 128)) {
      digits.unshift(0x80 | (high % 128));
    }
    bytes.push(...digits);
  }
  return element(TAG.OBJECT_IDENTIFIER, Uint8Array.from(bytes));
}

/**
 * UTF-16 code units, big-endian: the content of a BMPString.
 *
 * A character beyond U+FFFF (the 𠮷 of many a 吉田) becomes a surrogate pair. BMPString has no such
 * thing, but NSS and Java read the character that was meant; pyca reads no name, and the key still.
 * @param {string} text
 * @returns {Uint8Array}
 */
export function utf16(text) {
  const bytes = new Uint8Array(text.length * 2);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < text.length; i += 1) view.setUint16(i * 2, text.charCodeAt(i));
  return bytes;
}

/** BMPString. @param {string} text @returns {Uint8Array} */
export function bmpString(text) {
  return element(TAG.BMP_STRING, utf16(text));
}

/**
 * [number] EXPLICIT, or IMPLICIT over a SET or SEQUENCE.
 * @param {number} number
 * @param {...Uint8Array} items
 * @returns {Uint8Array}
 */
export function contextConstructed(number, ...items) {
  return element(TAG.CONTEXT_CONSTRUCTED | number, ...items);
}

/**
 * [number] IMPLICIT over a primitive type.
 * @param {number} number
 * @param {Uint8Array} content without tag and length
 * @returns {Uint8Array}
 */
export function contextPrimitive(number, content) {
  return element(TAG.CONTEXT_PRIMITIVE | number, content);
}

/**
 * @typedef {object} Element one DER element, as views of the bytes it was read from
 * @property {number} tag its identifier octet
 * @property {Uint8Array} content without tag and length
 * @property {Uint8Array} encoded with tag and length
 */

/** @param {Uint8Array} bytes @param {number} offset @returns {{length: number, start: number}} */
function readLength(bytes, offset) {
  const first = bytes[offset];
  if (first === undefined) throw new BadDER('the length is missing');
  if (first < FIRST_LONG_LENGTH) return { length: first, start: offset + 1 };
  const count = first & 0x7f;
  if (count === 0 || count > MAX_LENGTH_BYTES) throw new BadDER('the length is indefinite or huge');
  const start = offset + 1 + count;
  const digits = bytes.subarray(offset + 1, start);
  const length = digits.reduce((value, digit) => value * 256 + digit, 0);
  if (digits.length < count || digits[0] === 0 || length < FIRST_LONG_LENGTH) {
    throw new BadDER('the length is not in its shortest form');
  }
  return { length, start };
}

/**
 * Read the element that starts at `offset`; bytes may follow it.
 * @param {Uint8Array} bytes
 * @param {number} [offset]
 * @returns {Element}
 * @throws {BadDER} cut off, or not DER
 */
export function readElement(bytes, offset = 0) {
  const tag = bytes[offset];
  if (tag === undefined) throw new BadDER('an element is missing');
  if ((tag & MULTI_BYTE_TAG) === MULTI_BYTE_TAG) throw new BadDER('the tag has several bytes');
  const { length, start } = readLength(bytes, offset + 1);
  const end = start + length;
  if (end > bytes.length) throw new BadDER('the element is cut off');
  return { tag, content: bytes.subarray(start, end), encoded: bytes.subarray(offset, end) };
}

/**
 * Read bytes that are exactly one element of the given tag.
 * @param {Uint8Array} bytes
 * @param {number} tag
 * @returns {Element}
 * @throws {BadDER} another tag, bytes after the element, or not DER
 */
export function readExactly(bytes, tag) {
  const only = readElement(bytes);
  if (only.tag !== tag) throw new BadDER(`tag ${only.tag} stands where ${tag} was expected`);
  if (only.encoded.length !== bytes.length) throw new BadDER('bytes follow the element');
  return only;
}

/**
 * Read the elements inside a constructed one.
 * @param {Element} parent
 * @returns {Element[]}
 * @throws {BadDER} not DER
 */
export function readChildren(parent) {
  const children = [];
  for (let offset = 0; offset < parent.content.length; ) {
    const child = readElement(parent.content, offset);
    children.push(child);
    offset += child.encoded.length;
  }
  return children;
}
