/**
 * Runs the browser modules in node for test_browser_modules.py: one command with its argument as
 * JSON on standard input, the answer as JSON on standard output, bytes as hexadecimal.
 *
 * The test copies this file beside the modules.
 */

import { readCertificate } from './certificate.js';
import * as csr from './csr.js';
import { encryptBlocks } from './des3.js';
import { deleteEnrollment, listEnrollments, loadEnrollment, saveEnrollment } from './keystore.js';
import { createPKCS12, generatePassword } from './pkcs12.js';
import { sha256, sha256Chain } from './sha2.js';

const toHex = (bytes) => Buffer.from(bytes).toString('hex');
const fromHex = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'));

const readContents = ({ privateKey, certificate, caCertificates, ...rest }) => ({
  ...rest,
  privateKey: fromHex(privateKey),
  certificate: fromHex(certificate),
  caCertificates: caCertificates.map(fromHex),
});

/** What a call throws: `null` when it throws nothing. */
async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.name, code: error.code ?? null };
  }
  return null;
}

const COMMANDS = {
  keyTypes: () => csr.KEY_TYPES,

  request: async (keyType) => {
    const keyPair = await csr.generateKeyPair(keyType);
    const request = await csr.createCSR(keyPair);
    return {
      csr: toHex(request),
      pem: csr.toPEM(request),
      privateKey: toHex(await csr.exportPrivateKey(keyPair)),
      publicKey: toHex(await csr.exportPublicKey(keyPair)),
    };
  },

  requestRefusal: (keyType) => refusal(() => csr.generateKeyPair(keyType)),

  // Short r or s come once in 256 signatures: enough of them to meet both.
  manyECRequests: async ({ keyType, count }) => {
    const keyPair = await csr.generateKeyPair(keyType);
    const requests = [];
    for (let i = 0; i < count; i += 1) requests.push(toHex(await csr.createCSR(keyPair)));
    return requests;
  },

  pkcs12: async (contents) => {
    const progress = [];
    const onProgress = (fraction) => progress.push(fraction);
    let ticks = 0;
    const clock = setInterval(() => {
      ticks += 1;
    }, 1);
    const file = await createPKCS12({ ...readContents(contents), onProgress });
    clearInterval(clock);
    return { file: toHex(file), progress, ticks };
  },

  pkcs12Refusal: (contents) => refusal(() => createPKCS12(readContents(contents))),

  passwords: (count) => Array.from({ length: count }, generatePassword),

  certificate: (der) => {
    const { publicKey, ...facts } = readCertificate(fromHex(der));
    return { ...facts, publicKey: toHex(publicKey) };
  },

  certificateRefusals: (ders) =>
    Promise.all(ders.map((der) => refusal(() => readCertificate(fromHex(der))))),

  sha256: (messages) => messages.map((message) => toHex(sha256(fromHex(message)))),

  sha256Chain: ({ digest, rounds }) => toHex(sha256Chain(fromHex(digest), rounds)),

  tripleDES: (vectors) =>
    vectors.map(({ key, iv, plaintext }) =>
      toHex(encryptBlocks(fromHex(key), fromHex(iv), fromHex(plaintext))),
    ),

  // Node has no IndexedDB: as in a browser that refuses it.
  storageRefusals: () =>
    Promise.all([
      refusal(() => saveEnrollment({ invitationKey: 'i' })),
      refusal(() => loadEnrollment('i')),
      refusal(() => deleteEnrollment('i')),
      refusal(() => listEnrollments()),
    ]),
};

let input = '';
for await (const chunk of process.stdin) input += chunk;
const { command, argument } = JSON.parse(input);
process.stdout.write(JSON.stringify(await COMMANDS[command](argument)));
