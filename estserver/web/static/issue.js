/**
 * STEP2 and renewal: make the key, keep it, send the request, go on to the page that comes back.
 *
 * The key is in IndexedDB before its request leaves. Whatever happens afterwards, the same button
 * sends the same request again and gets the same certificate.
 */

import { createCSR, generateKeyPair, toPEM, InsecureContext } from './csr.js';
import { claimEnrollment, loadEnrollment } from './keystore.js';
import { preparePassword, readPassword } from './password.js';
import { clearErrors, fetchPage, pageData, Progress, showError } from './ui.js';

/**
 * The key of this enrollment: the one that is here, or a new one that is here from now on.
 * @param {string} key of the record
 * @param {import('./csr.js').KeyType} keyType
 */
async function ownKey(key, keyType) {
  const invitationKey = `${key}/${keyType}`;
  const standing = await loadEnrollment(invitationKey);
  if (standing !== null) return standing;
  const keyPair = await generateKeyPair(keyType);
  const csr = await createCSR(keyPair);
  const createdAt = new Date();
  return claimEnrollment({ invitationKey, keyPair, csr, keyType, createdAt, certificates: null });
}

/** @param {HTMLElement} main @param {string} method */
function showMethod(main, method) {
  for (const part of main.querySelectorAll('[data-method]')) {
    const wanted = part.dataset.method.split(' ').includes(method);
    part.hidden = !wanted;
    if (part instanceof HTMLFieldSetElement) part.disabled = !wanted;
  }
}

/** Say early what would fail late: no WebCrypto, or nothing can be stored. */
async function checkBrowser(main, key) {
  try {
    if (globalThis.crypto?.subtle === undefined) throw new InsecureContext();
    await loadEnrollment(key);
  } catch (error) {
    showError(main, error);
  }
}

/**
 * @param {HTMLElement} main
 * @param {(page: {document: Document, url: string}, chosen: object) => void} goOn shows what came
 */
export function startIssue(main, goOn) {
  const data = pageData(main);
  const form = main.querySelector('#issue-form');
  const button = form.querySelector('[name=issue]');
  const method = () => form.querySelector('[name=method]:checked')?.value ?? 'browser';
  const keyType = main.querySelector('#key-type');
  const keyShown = main.querySelector('#key-shown');
  let busy = false;

  main.querySelector('#advanced').open = false;
  const browser = form.querySelector('#method-browser');
  browser.checked = true;
  showMethod(main, 'browser');
  preparePassword(main);
  form.addEventListener('change', (event) => {
    if (event.target.name === 'method') showMethod(main, method());
    if (event.target === keyType) keyShown.textContent = keyType.selectedOptions[0].textContent;
  });
  checkBrowser(main, data.key);

  form.addEventListener('submit', async (event) => {
    if (method() !== 'browser') return;
    event.preventDefault();
    // Not `disabled`, which would take the focus away: a second press is simply no event.
    if (busy) return;
    clearErrors(main);
    const chosen = readPassword(main);
    if (chosen === null) return;
    busy = true;
    button.setAttribute('aria-disabled', 'true');
    const progress = new Progress(main);
    try {
      progress.step('making-key');
      const record = await ownKey(data.key, keyType.value);
      progress.step('sending');
      const fields = new URLSearchParams({
        csrf: form.elements.csrf.value,
        purpose: form.elements.purpose.value,
        method: 'browser',
        csr: toPEM(record.csr),
      });
      if (form.elements.pin !== undefined) fields.set('pin', form.elements.pin.value);
      const page = await fetchPage(data.action, fields);
      progress.end();
      goOn(page, chosen);
    } catch (error) {
      progress.end();
      showError(main, error);
    } finally {
      busy = false;
      button.removeAttribute('aria-disabled');
    }
  });
}
