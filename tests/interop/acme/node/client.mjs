// npm's acme-client: `node client.mjs COMMAND [ARGUMENT...]`; keys and certificate in this folder.
import fs from 'node:fs';
import { isIP } from 'node:net';
import acme from 'acme-client';

const { DIR, WWW, TXT, ALPN, EAB_KID, EAB_KEY, REPLACES } = process.env;
const read = (file) => (fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : undefined);

const client = new acme.Client({
    directoryUrl: DIR,
    accountKey: read('account.pem') ?? (await acme.crypto.createPrivateEcdsaKey()),
    accountUrl: read('account.url'),
    externalAccountBinding: EAB_KID && { kid: EAB_KID, hmacKey: EAB_KEY },
    backoffMin: 500,
});

const show = {
    'http-01': (_, challenge, keyAuthorization) => {
        fs.mkdirSync(`${WWW}/.well-known/acme-challenge`, { recursive: true });
        fs.writeFileSync(`${WWW}/.well-known/acme-challenge/${challenge.token}`, keyAuthorization);
    },
    'dns-01': (authorization, _, digest) => {
        const owner = `_acme-challenge.${authorization.identifier.value}`;
        fs.appendFileSync(`${TXT}/${owner}`, `${digest}\n`);
    },
    'tls-alpn-01': async (authorization, _, keyAuthorization) => {
        const files = await acme.crypto.createAlpnCertificate(authorization, keyAuthorization);
        const name = authorization.identifier.value;
        fs.writeFileSync(`${ALPN}/${name}.key.pem`, files[0]);
        fs.writeFileSync(`${ALPN}/${name}.crt.pem`, files[1]);
    },
};

const commands = {
    async account(...contact) {
        await client.createAccount({ termsOfServiceAgreed: true, contact });
        fs.writeFileSync('account.pem', client.opts.accountKey);
        fs.writeFileSync('account.url', client.getAccountUrl());
    },

    // As their examples/api.js goes, step by step.
    async issue(way, ...altNames) {
        const identifiers = altNames.map((value) => ({ type: isIP(value) ? 'ip' : 'dns', value }));
        const order = await client.createOrder({ identifiers, replaces: REPLACES });
        for (const authorization of await client.getAuthorizations(order)) {
            if (authorization.status === 'valid') continue;
            const challenge = authorization.challenges.find(({ type }) => type === way);
            const answer = await client.getChallengeKeyAuthorization(challenge);
            await show[way](authorization, challenge, answer);
            await client.completeChallenge(challenge);
            await client.waitForValidStatus(challenge);
        }
        const [key, csr] = await acme.crypto.createCsr({ altNames });
        fs.writeFileSync('key.pem', key);
        const finalized = await client.finalizeOrder(order, csr);
        fs.writeFileSync('cert.pem', await client.getCertificate(finalized));
    },

    // All of it in one call.
    async auto(way, ...altNames) {
        const [key, csr] = await acme.crypto.createCsr({ altNames });
        fs.writeFileSync('key.pem', key);
        const chain = await client.auto({
            csr,
            termsOfServiceAgreed: true,
            challengePriority: [way],
            challengeCreateFn: show[way],
            challengeRemoveFn: () => undefined,
            skipChallengeVerification: true,
        });
        fs.writeFileSync('cert.pem', chain);
    },

    async rekey() {
        const key = await acme.crypto.createPrivateEcdsaKey();
        await client.updateAccountKey(key);
        fs.writeFileSync('account.pem', key);
    },

    update: (...contact) => client.updateAccount({ contact }),
    revoke: (reason) => client.revokeCertificate(read('cert.pem'), { reason: Number(reason) }),
    deactivate: () => client.updateAccount({ status: 'deactivated' }),
};

const [command, ...given] = process.argv.slice(2);
await commands[command](...given);
