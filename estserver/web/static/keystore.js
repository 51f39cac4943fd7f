/**
 * The keys of this browser, one record for each invitation, in IndexedDB.
 *
 * A key is here, durably, before its request leaves the browser: closing the tab, reloading and a
 * second click lose nothing. A password is never here.
 */

const DATABASE = 'estserver';
const DATABASE_VERSION = 1;
const STORE = 'enrollments';

/**
 * @typedef {object} EnrollmentRecord
 * @property {string} invitationKey names the invitation; opaque, never the secret URL token
 * @property {CryptoKeyPair} keyPair extractable
 * @property {Uint8Array} csr DER, PKCS#10
 * @property {import('./csr.js').KeyType} keyType
 * @property {Date} createdAt
 * @property {Uint8Array[] | null} certificates DER each, the key's own first; null until issued
 */

/** The browser lets this page keep nothing: blocked by a setting, a policy, or broken. */
export class StorageBlocked extends Error {
  /** @param {string} detail @param {ErrorOptions} [options] */
  constructor(detail, options) {
    super(`this browser stores nothing for this site: ${detail}`, options);
    this.name = 'StorageBlocked';
    this.code = 'storage-blocked';
  }
}

/** There is no room left on this device for the record. */
export class StorageFull extends Error {
  /** @param {ErrorOptions} [options] */
  constructor(options) {
    super('this device has no room left for the key', options);
    this.name = 'StorageFull';
    this.code = 'storage-full';
  }
}

/** @param {unknown} cause @returns {StorageBlocked | StorageFull} */
function storageError(cause) {
  if (cause instanceof DOMException && cause.name === 'QuotaExceededError') {
    return new StorageFull({ cause });
  }
  return new StorageBlocked(cause instanceof Error ? cause.message : 'no reason given', { cause });
}

/** @returns {Promise<IDBDatabase>} */
function openDatabase() {
  return new Promise((resolve, reject) => {
    // The executor turns what these two lines throw into a rejection: `indexedDB` is undefined in
    // some embedded browsers, and merely reading it is a SecurityError where cookies are blocked.
    const request = globalThis.indexedDB.open(DATABASE, DATABASE_VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: 'invitationKey' });
    };
    request.onsuccess = () => {
      // Another tab with a newer version of this page must not wait for this one.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error('an older tab of this site is still open'));
  });
}

/**
 * Run one request in a transaction of its own and wait until that is complete.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} makeRequest
 * @returns {Promise<T>}
 * @throws {StorageBlocked | StorageFull}
 */
async function transact(mode, makeRequest) {
  let database;
  try {
    database = await openDatabase();
    return await new Promise((resolve, reject) => {
      // Strict: complete means on the disk, not in a cache that a crash empties.
      const transaction = database.transaction(STORE, mode, { durability: 'strict' });
      const request = makeRequest(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? request.error);
    });
  } catch (cause) {
    throw storageError(cause);
  } finally {
    database?.close();
  }
}

/**
 * Store a record, replacing the one of the same invitation.
 * @param {EnrollmentRecord} record
 * @returns {Promise<void>} when it is on the disk
 * @throws {StorageBlocked} nothing can be stored
 * @throws {StorageFull} no room
 */
export async function saveEnrollment(record) {
  await transact('readwrite', (store) => store.put(record));
}

/**
 * Store a new record unless the invitation has one, and return the one that stands.
 *
 * Of two tabs or two clicks the first wins, and both go on with the same key.
 * @param {EnrollmentRecord} record
 * @returns {Promise<EnrollmentRecord>} when it is on the disk
 * @throws {StorageBlocked} nothing can be stored
 * @throws {StorageFull} no room
 */
export async function claimEnrollment(record) {
  const found = await transact('readwrite', (store) => {
    const standing = store.get(record.invitationKey);
    standing.onsuccess = () => {
      if (standing.result === undefined) store.add(record);
    };
    return standing;
  });
  return found ?? record;
}

/**
 * @param {string} invitationKey
 * @returns {Promise<EnrollmentRecord | null>} null when this browser has none
 * @throws {StorageBlocked} nothing can be read
 */
export async function loadEnrollment(invitationKey) {
  return (await transact('readonly', (store) => store.get(invitationKey))) ?? null;
}

/**
 * Forget the key of an invitation; no error when there is none.
 * @param {string} invitationKey
 * @returns {Promise<void>}
 * @throws {StorageBlocked} nothing can be changed
 */
export async function deleteEnrollment(invitationKey) {
  await transact('readwrite', (store) => store.delete(invitationKey));
}

/**
 * @returns {Promise<EnrollmentRecord[]>} by invitationKey
 * @throws {StorageBlocked} nothing can be read
 */
export async function listEnrollments() {
  return transact('readonly', (store) => store.getAll());
}
