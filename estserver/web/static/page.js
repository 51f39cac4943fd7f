/** The entry: does for the page what its data says. Pages without data need no script. */

import { isMistyped } from './pin.js';
import { startIssue } from './issue.js';
import { watchSession } from './session.js';
import { startTake } from './take.js';
import { clearErrors, copyText, pageData, showProblem } from './ui.js';
import { startWaiting } from './waiting.js';

/** The server says days in UTC; the reader lives in a zone of their own. @param {ParentNode} root */
function localizeTimes(root) {
  const { lang } = document.documentElement;
  const day = new Intl.DateTimeFormat(lang, { dateStyle: 'long' });
  const minute = new Intl.DateTimeFormat(lang, { dateStyle: 'long', timeStyle: 'short' });
  for (const time of root.querySelectorAll('time')) {
    const moment = new Date(time.dateTime);
    time.textContent = day.format(moment);
    time.title = minute.format(moment);
  }
}

/** @param {HTMLElement} main */
function startPIN(main) {
  // Back and reload would offer to send a wrong PIN once more, at the price of another try.
  history.replaceState(null, '', location.href);
  const form = main.querySelector('#pin-form');
  const copy = main.querySelector('#copy-link');
  copy.addEventListener('click', () => {
    copyText(main, copy, location.origin + location.pathname.replace(/\/pin$/, ''));
  });
  form.addEventListener('submit', (event) => {
    const field = form.elements.pin;
    clearErrors(main);
    if (isMistyped(field.value)) {
      event.preventDefault();
      showProblem(main, field, 'mistyped-pin');
    }
  });
}

/** @param {{document: Document, url: string}} page @param {object} [chosen] */
function goOn(page, chosen) {
  const next = document.adoptNode(page.document.querySelector('main'));
  document.querySelector('main').replaceWith(next);
  document.title = page.document.title;
  history.replaceState(null, '', page.url);
  next.querySelector('h1').focus();
  scrollTo(0, 0);
  start(next, chosen);
}

/** @param {HTMLElement} main @param {object} [chosen] */
function start(main, chosen) {
  localizeTimes(main);
  watchSession(main);
  const { kind } = pageData(main);
  if (kind === 'pin') startPIN(main);
  else if (kind === 'issue') startIssue(main, goOn);
  else if (kind === 'wait') startWaiting(main, goOn);
  else if (kind === 'take') startTake(main, chosen);
}

start(document.querySelector('main'));
