/** Waiting for an officer: look again now and then, and finish as soon as it is decided. */

import { toPEM } from './csr.js';
import { keysHere } from './take.js';
import { fetchPage, NoConnection, pageData, showError } from './ui.js';

const APPROVED = ['approved', 'issuing'];

/**
 * @param {HTMLElement} main
 * @param {(page: {document: Document, url: string}) => void} goOn
 */
export function startWaiting(main, goOn) {
  const data = pageData(main);

  const look = async () => {
    try {
      const page = await fetchPage(data.home);
      const next = pageData(page.document.querySelector('main'));
      if (next.kind !== 'wait') {
        goOn(page);
        return;
      }
      if (APPROVED.includes(next.state)) {
        // The server signs within a minute by itself; the same request again makes it do so now.
        const record = (await keysHere(data.prefix)).get(data.spki);
        if (record !== undefined) {
          const csrf = page.document.querySelector('[name=csrf]').value;
          const fields = { csrf, purpose: 'new', method: 'browser', csr: toPEM(record.csr) };
          goOn(await fetchPage(data.action, new URLSearchParams(fields)));
          return;
        }
      }
    } catch (error) {
      if (!(error instanceof NoConnection)) {
        showError(main, error);
        return;
      }
    }
    setTimeout(look, data.seconds * 1000);
  };
  setTimeout(look, data.seconds * 1000);
}
