/**
 * The access PIN as the server reads it (estserver/pin.py), so that a typing mistake is found here,
 * before anything is sent. Whatever this module does not understand it leaves to the server.
 */

const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const LENGTHS = [9, 14];
const LOOK_ALIKES = { O: '0', I: '1', L: '1' };

/** Blanks, every kind of hyphen, and the long vowel mark and minus that an IME types for one. */
const SEPARATORS = /[\s\p{Pd}\u30fc\u2212]/gu;

/** @param {string} body @returns {string} Luhn's sum in base 32, as one symbol */
function checkSymbol(body) {
  const size = ALPHABET.length;
  const total = [...body].reverse().reduce((sum, symbol, position) => {
    const value = ALPHABET.indexOf(symbol);
    if (position % 2 === 1) return sum + value;
    return sum + Math.floor((value * 2) / size) + ((value * 2) % size);
  }, 0);
  return ALPHABET[(size - (total % size)) % size];
}

/**
 * @param {string} typed
 * @returns {boolean} true when this has the shape of a PIN and its check symbol is wrong
 */
export function isMistyped(typed) {
  const folded = typed.normalize('NFKC').toUpperCase().replace(SEPARATORS, '');
  const symbols = folded.replace(/[OIL]/g, (letter) => LOOK_ALIKES[letter]);
  if (!LENGTHS.includes(symbols.length)) return false;
  if (![...symbols].every((symbol) => ALPHABET.includes(symbol))) return false;
  return checkSymbol(symbols.slice(0, -1)) !== symbols.at(-1);
}
