/** The password of the certificate file: made here, shown, copied, or the owner's own. */

import { checkPassword, generatePassword } from './pkcs12.js';
import { clearErrors, copyText, showProblem } from './ui.js';

const MIN_LENGTH = 12;

/**
 * Fill the password field and bring its buttons to life.
 * @param {HTMLElement} main
 * @param {{password: string, format: string}} [chosen] on the page before
 */
export function preparePassword(main, chosen) {
  const field = main.querySelector('[name=p12-password]');
  field.value = chosen?.password ?? generatePassword();
  if (chosen !== undefined) main.querySelector(`#format-${chosen.format}`).checked = true;
  main.querySelector('#new-password').addEventListener('click', () => {
    clearErrors(main);
    field.value = generatePassword();
    field.focus();
  });
  const copy = main.querySelector('#copy-password');
  copy.addEventListener('click', async () => {
    // Where the browser does not let us, the reader can.
    if (!(await copyText(main, copy, field.value))) field.select();
  });
}

/**
 * @param {HTMLElement} main
 * @returns {{password: string, format: 'modern' | 'compatible'} | null} null when it is refused,
 *   which is said beside the field then
 */
export function readPassword(main) {
  const field = main.querySelector('[name=p12-password]');
  const format = main.querySelector('[name=format]:checked').value;
  try {
    checkPassword(field.value, format);
  } catch (error) {
    showProblem(main, field, error.code);
    return null;
  }
  if (field.value.length < MIN_LENGTH) {
    showProblem(main, field, 'password-too-short');
    return null;
  }
  return { password: field.value, format };
}
