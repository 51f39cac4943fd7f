/** Warn before an idle session ends, and let one press extend it (WCAG 2.2.1). */

import { fetchPage } from './ui.js';

const WARN_BEFORE_MS = 5 * 60_000;
let timer;

/** @param {HTMLElement} main */
export function watchSession(main) {
  clearTimeout(timer);
  const idle = Number(main.dataset.idle) * 1000;
  if (!(idle > 0)) return;
  const notice = main.querySelector('#idle');
  timer = setTimeout(
    () => {
      notice.hidden = false;
    },
    Math.max(idle / 2, idle - WARN_BEFORE_MS),
  );
  main.querySelector('#stay').addEventListener(
    'click',
    async () => {
      try {
        await fetchPage(location.pathname);
      } catch {
        location.reload();
        return;
      }
      notice.hidden = true;
      watchSession(main);
    },
    { once: true },
  );
}
