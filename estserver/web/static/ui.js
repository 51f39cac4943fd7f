/**
 * What the scripts of all pages share: the words of the page, its error summary, the next page.
 *
 * Every page is made by the server. A script asks for the next one as a document and puts its
 * `main` in place of the present one, so that a file password need not be stored anywhere.
 */

/** @param {HTMLElement} main @returns {Record<string, any>} what the server tells the script */
export function pageData(main) {
  return JSON.parse(main.dataset.page ?? '{}');
}

/**
 * @param {HTMLElement} main
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 * @returns {string} the message in the language of the page
 */
export function say(main, key, values = {}) {
  const texts = JSON.parse(main.dataset.texts);
  return Object.entries(values).reduce(
    (text, [name, value]) => text.replace(`{${name}}`, String(value)),
    texts[key] ?? texts.unexpected,
  );
}

/** The server refused, in words of its own. */
export class ServerRefusal extends Error {
  /** @param {HTMLElement} summary the server's error summary */
  constructor(summary) {
    super(summary.dataset.code);
    this.name = 'ServerRefusal';
    this.summary = summary;
  }
}

/** The server could not be reached, or what came was not a page. */
export class NoConnection extends Error {
  constructor() {
    super('no answer from the server');
    this.name = 'NoConnection';
    this.code = 'network';
  }
}

/**
 * Ask the server for a page. XMLHttpRequest, because it parses documents itself: DOMParser is shut
 * by the site's Trusted Types policy.
 * @param {string} url
 * @param {URLSearchParams} [form] POSTed when given
 * @returns {Promise<{document: Document, url: string}>} after redirects
 * @throws {ServerRefusal | NoConnection}
 */
export function fetchPage(url, form) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(form === undefined ? 'GET' : 'POST', url);
    request.responseType = 'document';
    request.onerror = () => reject(new NoConnection());
    request.onload = () => {
      const page = request.response;
      if (page?.querySelector('main') == null) {
        reject(new NoConnection());
        return;
      }
      const summary = page.getElementById('error');
      if (request.status >= 400 && summary !== null) reject(new ServerRefusal(summary));
      else resolve({ document: page, url: request.responseURL });
    };
    request.send(form);
  });
}

/** @param {HTMLElement} main */
export function clearErrors(main) {
  main.querySelector('#error')?.remove();
  for (const problem of main.querySelectorAll('.problem')) problem.hidden = true;
  for (const field of main.querySelectorAll('[aria-invalid]')) field.removeAttribute('aria-invalid');
  document.title = document.title.replace(main.dataset.errorPrefix, '');
}

/**
 * Put an error summary at the top of the page and take the reader there.
 * @param {HTMLElement} main
 * @param {unknown} error a `ServerRefusal` brings its own words; others have a `code`
 */
export function showError(main, error) {
  clearErrors(main);
  let summary;
  if (error instanceof ServerRefusal) {
    summary = document.adoptNode(error.summary);
  } else {
    summary = document.createElement('section');
    summary.id = 'error';
    summary.className = 'notice error';
    summary.setAttribute('role', 'alert');
    summary.tabIndex = -1;
    summary.dataset.code = error?.code ?? 'unexpected';
    const heading = document.createElement('h2');
    heading.textContent = main.dataset.errorHeading;
    const text = document.createElement('p');
    text.textContent = say(main, summary.dataset.code);
    summary.append(heading, text);
    if (error?.code === undefined) console.error(error);
  }
  main.querySelector('h1').before(summary);
  document.title = main.dataset.errorPrefix + document.title;
  summary.focus();
}

/**
 * Say what is wrong with one field, beside it.
 * @param {HTMLElement} main
 * @param {HTMLInputElement} field
 * @param {string} code of the message
 */
export function showProblem(main, field, code) {
  const problem = main.querySelector(`#${field.id}-problem`);
  problem.textContent = say(main, code);
  problem.hidden = false;
  field.setAttribute('aria-invalid', 'true');
  field.focus();
}

/**
 * Put a text on the clipboard and say so on the button.
 * @param {HTMLElement} main
 * @param {HTMLButtonElement} button
 * @param {string} text
 * @returns {Promise<boolean>} false when the browser does not allow it
 */
export async function copyText(main, button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return false;
  }
  button.textContent = say(main, 'copied');
  setTimeout(() => {
    button.textContent = label;
  }, 2000);
  return true;
}

/**
 * What is going on, for eyes and for screen readers: the step is announced, the seconds are not.
 */
export class Progress {
  #main;
  #started = performance.now();
  #timer;

  /** @param {HTMLElement} main */
  constructor(main) {
    this.#main = main;
    main.querySelector('h1').closest('main').setAttribute('aria-busy', 'true');
    this.#timer = setInterval(() => this.#tick(), 1000);
  }

  #tick() {
    const seconds = Math.round((performance.now() - this.#started) / 1000);
    const elapsed = this.#main.querySelector('#elapsed');
    if (elapsed !== null) elapsed.textContent = say(this.#main, 'seconds', { seconds });
  }

  /** @param {string} key of the message */
  step(key) {
    this.#main.querySelector('#progress').textContent = say(this.#main, key);
  }

  /** @param {number} fraction 0 to 1 */
  meter(fraction) {
    const meter = this.#main.querySelector('#meter');
    meter.hidden = fraction >= 1;
    meter.value = fraction;
  }

  /** @param {string} [key] what stays to be read */
  end(key) {
    clearInterval(this.#timer);
    this.#main.removeAttribute('aria-busy');
    this.#main.querySelector('#progress').textContent = key === undefined ? '' : say(this.#main, key);
    this.#main.querySelector('#elapsed').textContent = '';
    const meter = this.#main.querySelector('#meter');
    if (meter !== null) meter.hidden = true;
  }
}
