/**
 * STEP3: build the certificate file from the key of this browser and the certificate of the server,
 * as often as wanted, until the owner says that it is imported.
 */

import { exportPrivateKey, exportPublicKey } from './csr.js';
import { deleteEnrollment, listEnrollments, saveEnrollment } from './keystore.js';
import { preparePassword, readPassword } from './password.js';
import { createPKCS12 } from './pkcs12.js';
import { sha256 } from './sha2.js';
import { clearErrors, pageData, Progress, showError } from './ui.js';

const MIME_TYPE = 'application/x-pkcs12';
const REVOKE_AFTER_MS = 60_000;

/** @param {string} base64 @returns {Uint8Array} */
function fromBase64(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** @param {Uint8Array} bytes @returns {string} */
function toHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * @param {string} prefix of the invitation's records
 * @returns {Promise<Map<string, import('./keystore.js').EnrollmentRecord>>} by the SHA-256 of the
 *   public key, in hex
 */
export async function keysHere(prefix) {
  const found = new Map();
  for (const record of await listEnrollments()) {
    if (record.invitationKey.startsWith(prefix)) {
      found.set(toHex(sha256(await exportPublicKey(record.keyPair))), record);
    }
  }
  return found;
}

/** @param {Uint8Array} file @param {string} name */
function save(file, name) {
  const url = URL.createObjectURL(new Blob([file], { type: MIME_TYPE }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // Firefox reads the blob after the click has returned.
  setTimeout(() => URL.revokeObjectURL(url), REVOKE_AFTER_MS);
}

/**
 * @param {HTMLElement} main
 * @param {{password: string, format: 'modern' | 'compatible'}} [chosen] on STEP2, just now
 */
export async function startTake(main, chosen) {
  const data = pageData(main);
  const here = main.querySelector('#key-here');
  const elsewhere = main.querySelector('#key-elsewhere');
  const form = main.querySelector('#file-form');
  let keys;
  try {
    keys = await keysHere(data.prefix);
  } catch (error) {
    keys = new Map();
    showError(main, error);
  }
  const record = keys.get(data.spki);
  if (record === undefined) {
    const other = [...keys.keys()].find((spki) => data.others[spki] !== undefined);
    if (other !== undefined) {
      location.replace(data.others[other]);
      return;
    }
  }
  // The owner has confirmed to hold it: nothing is handed over any more.
  if (here === null) return;
  if (record === undefined) {
    here.remove();
    elsewhere.classList.remove('nojs-only');
    elsewhere.querySelector('.nojs-only')?.remove();
    elsewhere.querySelector('.download').id = 'download';
    return;
  }
  elsewhere.remove();
  here.hidden = false;
  form.querySelector('.download').id = 'download';
  preparePassword(main, chosen);

  let busy = false;
  const build = async () => {
    if (busy) return;
    clearErrors(main);
    const wanted = readPassword(main);
    if (wanted === null) return;
    busy = true;
    const progress = new Progress(main);
    try {
      progress.step('building');
      const [certificate, ...caCertificates] = data.certificates.map(fromBase64);
      const file = await createPKCS12({
        privateKey: await exportPrivateKey(record.keyPair),
        certificate,
        caCertificates,
        friendlyName: data.name,
        ...wanted,
        onProgress: (fraction) => progress.meter(fraction),
      });
      save(file, data.file);
      record.certificates = [certificate, ...caCertificates];
      await saveEnrollment(record);
      progress.end('downloaded');
    } catch (error) {
      progress.end();
      showError(main, error);
    } finally {
      busy = false;
    }
  };
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    build();
  });

  const taken = main.querySelector('#taken-form');
  taken?.addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      await deleteEnrollment(record.invitationKey);
    } catch (error) {
      // Confirming matters more: what cannot be deleted now dies with the browser's site data.
      showError(main, error);
    }
    taken.submit();
  });

  // The first time by itself: right after issuance, or when the tab was closed before it came to it.
  if (chosen !== undefined || record.certificates === null) await build();
}
