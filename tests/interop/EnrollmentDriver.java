import java.io.BufferedReader;
import java.io.FileReader;
import java.io.FileWriter;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLSession;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.asn1.x500.RDN;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.asn1.x509.Extension;
import org.bouncycastle.asn1.x509.Extensions;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.CACertsResponse;
import org.bouncycastle.est.CSRRequestResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;
import org.bouncycastle.openssl.PEMKeyPair;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.PKCS8Generator;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequestBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;
import org.bouncycastle.util.Store;
import org.bouncycastle.util.io.Streams;

/**
 * One EST operation by Bouncy Castle's own client, as its documentation shows it.
 *
 * Arguments: OPERATION NAME=VALUE... with server (host:port), root (PEM), tls, label, realm, user,
 * subject, key (PEM, written if it is not there), certificate (PEM, presented in the handshake),
 * names-from (PEM, whose subject and subjectAltName the request repeats), out (PEM), made-key (PEM,
 * where the server makes the key). The PIN comes as the first line of standard input. Prints one fact a line, `NAME VALUE`.
 */
public final class EnrollmentDriver {
    private static final long READ_LIMIT = 1 << 20;
    private static final Logger TLS_LOGGER = Logger.getLogger("org.bouncycastle.jsse");
    private static final int TIMEOUT_MILLISECONDS = 20_000;

    private final Map<String, String> given;
    private final BufferedReader input =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    private EnrollmentDriver(Map<String, String> given) {
        this.given = given;
    }

    public static void main(String[] arguments) throws Exception {
        // It comments on Java's own configuration.
        TLS_LOGGER.setLevel(Level.SEVERE);
        Security.addProvider(new BouncyCastleProvider());
        Security.addProvider(new BouncyCastleJsseProvider());
        Map<String, String> given = new HashMap<>();
        for (int i = 1; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=", 2);
            given.put(pair[0], pair[1]);
        }
        try {
            new EnrollmentDriver(given).perform(arguments[0]);
        } catch (ESTException error) {
            System.out.println("refused " + error.getStatusCode());
            if (error.getBody() != null) {
                String reason = new String(Streams.readAll(error.getBody()), StandardCharsets.UTF_8);
                System.out.println("reason " + reason.replace('\n', ' '));
            }
        }
    }

    private void perform(String operation) throws Exception {
        switch (operation) {
            case "cacerts" -> fetchCertificates();
            case "csrattrs" -> fetchAttributes();
            case "enroll" -> finish(enroll(false));
            case "reenroll" -> finish(enroll(true));
            case "enroll-linked" -> finish(enrollLinked(false));
            case "reenroll-linked" -> finish(enrollLinked(true));
            case "serverkeygen" -> finish(enrollWithServerKey());
            default -> throw new IllegalArgumentException(operation);
        }
    }

    private void fetchCertificates() throws Exception {
        CACertsResponse response = service().getCACerts();
        printSession(response.getSession());
        System.out.println("trusted " + response.isTrusted());
        List<X509CertificateHolder> certificates =
            new ArrayList<>(response.getCertificateStore().getMatches(null));
        write("out", certificates.toArray());
        System.out.println("certificates " + certificates.size());
    }

    private void fetchAttributes() throws Exception {
        CSRRequestResponse response = service().getCSRAttributes();
        printSession(response.getSession());
        System.out.println("attributes " + response.hasAttributesResponse());
        if (response.hasAttributesResponse()) {
            for (ASN1ObjectIdentifier oid : response.getAttributesResponse().getRequirements()) {
                System.out.println("requires " + oid.getId());
            }
        }
    }

    private EnrollmentResponse enroll(boolean again) throws Exception {
        ESTAuth auth = auth();
        KeyPair key = key();
        return service().simpleEnroll(again, request(key).build(signer(key)), auth);
    }

    private EnrollmentResponse enrollLinked(boolean again) throws Exception {
        ESTAuth auth = auth();
        KeyPair key = key();
        return service().simpleEnrollPoP(again, request(key), signer(key), auth);
    }

    private EnrollmentResponse enrollWithServerKey() throws Exception {
        ESTAuth auth = auth();
        KeyPair key = key();
        return service().simpleEnrollWithServersideCreation(request(key).build(signer(key)), auth);
    }

    /** Poll for as long as the server says 202; whoever started us approves before the next line. */
    private void finish(EnrollmentResponse first) throws Exception {
        EnrollmentResponse response = first;
        while (!response.isCompleted()) {
            long wait = response.getNotBefore() - System.currentTimeMillis();
            System.out.println("pending " + TimeUnit.MILLISECONDS.toSeconds(wait + 999));
            System.out.flush();
            if (input.readLine() == null) {
                return;
            }
            response = service().simpleEnroll(response);
        }
        printSession(response.getSession());
        Store<X509CertificateHolder> store = response.getStore();
        X509CertificateHolder[] issued = ESTService.storeToArray(store);
        PrivateKeyInfo made = response.getPrivateKeyInfo();
        if (made != null) {
            write("made-key", new PKCS8Generator(made, null));
            System.out.println("key " + made.getPrivateKeyAlgorithm().getAlgorithm().getId());
        }
        write("out", (Object[]) issued);
        System.out.println("certificates " + issued.length);
    }

    private ESTService service() throws Exception {
        String[] server = given.get("server").split(":");
        X509Certificate root = certificate("root");
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(
            server[0],
            Integer.parseInt(server[1]),
            JcaJceUtils.getCertPathTrustManager(
                Collections.singleton(new TrustAnchor(root, null)), null));
        builder.withHostNameAuthorizer(new JsseDefaultHostnameAuthorizer(Collections.emptySet()));
        builder.withTLSVersion(given.get("tls"));
        builder.withTimeout(TIMEOUT_MILLISECONDS);
        builder.withReadLimit(READ_LIMIT);
        if (given.containsKey("label")) {
            builder.withLabel(given.get("label"));
        }
        if (given.containsKey("provider")) {
            builder.withProvider(given.get("provider"));
        }
        builder.withChannelBindingProvider(new BouncyCastleBinding());
        if (given.containsKey("certificate")) {
            builder.withKeyManagers(keyManagers());
        }
        return builder.build();
    }

    /** Reads the channel binding of sockets that Bouncy Castle made; Java's own tell none. */
    private static final class BouncyCastleBinding implements ChannelBindingProvider {
        @Override
        public boolean canAccessChannelBinding(Socket socket) {
            return socket instanceof BCSSLSocket;
        }

        @Override
        public byte[] getChannelBinding(Socket socket, String binding) {
            return ((BCSSLSocket) socket).getConnection().getChannelBinding(binding);
        }
    }

    private KeyManager[] keyManagers() throws Exception {
        X509Certificate held = certificate("certificate");
        char[] password = "in memory only".toCharArray();
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        store.setKeyEntry(
            "held", readKey(given.get("certificate")).getPrivate(), password,
            new X509Certificate[] {held});
        KeyManagerFactory factory =
            KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        factory.init(store, password);
        return factory.getKeyManagers();
    }

    private ESTAuth auth() throws Exception {
        if (!given.containsKey("user")) {
            return null;
        }
        char[] pin = input.readLine().toCharArray();
        return given.containsKey("realm")
            ? new JcaHttpAuthBuilder(given.get("realm"), given.get("user"), pin).build()
            : new JcaHttpAuthBuilder(given.get("user"), pin).build();
    }

    private PKCS10CertificationRequestBuilder request(KeyPair key) throws Exception {
        if (!given.containsKey("names-from")) {
            X500Name subject = given.containsKey("subject")
                ? new X500Name(given.get("subject"))
                : new X500Name(new RDN[0]);
            return new JcaPKCS10CertificationRequestBuilder(subject, key.getPublic());
        }
        X509CertificateHolder old = read(given.get("names-from"));
        PKCS10CertificationRequestBuilder request =
            new JcaPKCS10CertificationRequestBuilder(old.getSubject(), key.getPublic());
        Extension names = old.getExtension(Extension.subjectAlternativeName);
        if (names != null) {
            request.addAttribute(
                PKCSObjectIdentifiers.pkcs_9_at_extensionRequest, new Extensions(names));
        }
        return request;
    }

    private static ContentSigner signer(KeyPair key) throws Exception {
        return new JcaContentSignerBuilder("SHA256withECDSA").build(key.getPrivate());
    }

    private KeyPair key() throws Exception {
        String path = given.get("key");
        if (Files.exists(Path.of(path))) {
            return readKey(path);
        }
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC", "BC");
        generator.initialize(new ECGenParameterSpec("P-256"));
        KeyPair key = generator.generateKeyPair();
        try (JcaPEMWriter writer = new JcaPEMWriter(new FileWriter(path))) {
            writer.writeObject(key);
        }
        return key;
    }

    private static KeyPair readKey(String path) throws IOException {
        try (PEMParser parser = new PEMParser(new FileReader(path))) {
            Object found = parser.readObject();
            while (!(found instanceof PEMKeyPair)) {
                found = parser.readObject();
            }
            return new JcaPEMKeyConverter().getKeyPair((PEMKeyPair) found);
        }
    }

    private X509Certificate certificate(String name) throws Exception {
        return new JcaX509CertificateConverter().getCertificate(read(given.get(name)));
    }

    private static X509CertificateHolder read(String path) throws IOException {
        try (Reader reader = new FileReader(path); PEMParser parser = new PEMParser(reader)) {
            Object found = parser.readObject();
            while (!(found instanceof X509CertificateHolder)) {
                found = parser.readObject();
            }
            return (X509CertificateHolder) found;
        }
    }

    private void write(String file, Object... values) throws IOException {
        try (JcaPEMWriter writer = new JcaPEMWriter(new FileWriter(given.get(file)))) {
            for (Object value : values) {
                writer.writeObject(value);
            }
        }
    }

    private static void printSession(Object session) {
        System.out.println("tls " + ((SSLSession) session).getProtocol());
    }
}
