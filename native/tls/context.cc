/*
 * TLS contexts: an SSL_CTX made from the settings client_tls_* or server_tls_*. Texts of failures are PgBouncer's, because
 * they are logged.
 *
 * No session outlives its connection: there are no tickets, no session cache and no early data. So the whole state of a live
 * connection is in its TlsSession.
 */
#include <openssl/err.h>
#include <openssl/objects.h>
#include <strings.h>
#include <unistd.h>

#include <cstring>
#include <new>

#include "tls/keys.h"
#include "tls/tls.h"

namespace tsb {

/** Most certificates between the peer's and a trusted certificate. */
constexpr int kVerifyDepth = 6;

/** The system's trusted authorities, on several systems; used if none are configured. */
static const char *const kSystemCaFiles[] = {
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
};

/** A client that announces protocols has to announce this one. */
static const unsigned char kAlpn[] = {10, 'p', 'o', 's', 't', 'g', 'r', 'e', 's', 'q', 'l'};

std::string tlsQueuedError(const char *otherwise) {
  const unsigned long code = ERR_peek_error();
  if (code == 0) return otherwise;
  char text[256];
  ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return text;
}

static bool isDefaultWord(const std::string &ciphers) {
  for (const char *word : {"", "default", "secure", "normal", "fast"})
    if (strcasecmp(ciphers.c_str(), word) == 0) return true;
  return false;
}

bool tlsCiphersKnown(const std::string &ciphers) {
  if (isDefaultWord(ciphers)) return true;
  SSL_CTX *ssl = SSL_CTX_new(TLS_method());
  const bool known = ssl && SSL_CTX_set_cipher_list(ssl, ciphers.c_str()) == 1;
  SSL_CTX_free(ssl);
  ERR_clear_error();
  return known;
}

std::vector<std::string> tlsSuitesThatStay(const std::string &ciphers) {
  std::vector<std::string> names;
  if (isDefaultWord(ciphers)) return names;
  SSL_CTX *ssl = SSL_CTX_new(TLS_method());
  if (ssl && SSL_CTX_set_cipher_list(ssl, ciphers.c_str()) == 1) {
    const STACK_OF(SSL_CIPHER) *list = SSL_CTX_get_ciphers(ssl);
    for (int i = 0; i < sk_SSL_CIPHER_num(list); i++) {
      const SSL_CIPHER *cipher = sk_SSL_CIPHER_value(list, i);
      // the list has the suites of TLS 1.3 in front, which have settings of their own
      if (strcmp(SSL_CIPHER_get_version(cipher), "TLSv1.3") == 0) continue;
      if (!tlsAeadOf(TLS1_2_VERSION, SSL_CIPHER_get_protocol_id(cipher))) names.push_back(SSL_CIPHER_get_name(cipher));
    }
  }
  SSL_CTX_free(ssl);
  ERR_clear_error();
  return names;
}

static bool isCurveWord(const std::string &curve) {
  return curve.empty() || strcasecmp(curve.c_str(), "none") == 0 || strcasecmp(curve.c_str(), "auto") == 0;
}

bool tlsCurveKnown(const std::string &curve) {
  const bool known = isCurveWord(curve) || OBJ_txt2nid(curve.c_str()) != NID_undef;
  ERR_clear_error();
  return known;
}

/* A client that announces only other protocols is refused, as RFC 7301 demands. */
static int selectAlpn(SSL *, const unsigned char **out, unsigned char *outLength, const unsigned char *in,
                      unsigned int inLength, void *) {
  unsigned char *selected = nullptr;
  const int res = SSL_select_next_proto(&selected, outLength, kAlpn, sizeof(kAlpn), in, inLength);
  if (res != OPENSSL_NPN_NEGOTIATED) return SSL_TLSEXT_ERR_ALERT_FATAL;
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

/* Without this, OpenSSL asks for the passphrase of a key at the terminal. */
static int noPassphrase(char *, int, int, void *) { return 0; }

static void setProtocols(SSL_CTX *ssl, int protocols) {
  struct Row {
    int bit;
    int version;
    uint64_t off;
  };
  static const Row rows[] = {
      {kTls10, TLS1_VERSION, SSL_OP_NO_TLSv1},
      {kTls11, TLS1_1_VERSION, SSL_OP_NO_TLSv1_1},
      {kTls12, TLS1_2_VERSION, SSL_OP_NO_TLSv1_2},
      {kTls13, TLS1_3_VERSION, SSL_OP_NO_TLSv1_3},
  };
  int least = 0;
  int most = 0;
  for (const Row &row : rows) {
    if ((protocols & row.bit) == 0) {
      SSL_CTX_set_options(ssl, row.off);
      continue;
    }
    if (least == 0) least = row.version;
    most = row.version;
  }
  // a setting such as "!all" leaves no protocol, and every handshake fails then
  SSL_CTX_set_min_proto_version(ssl, least ? least : TLS1_VERSION);
  SSL_CTX_set_max_proto_version(ssl, most ? most : TLS1_3_VERSION);
}

static bool setCiphers(SSL_CTX *ssl, const TlsOptions &options, std::string *error) {
  // without a list of its own the context uses OpenSSL's, which may follow the policy of the system
  if (!isDefaultWord(options.ciphers) && SSL_CTX_set_cipher_list(ssl, options.ciphers.c_str()) != 1) {
    *error = "failed to set ciphers";
    return false;
  }
  if ((options.protocols & kTls13) && !options.ciphers13.empty() &&
      SSL_CTX_set_ciphersuites(ssl, options.ciphers13.c_str()) != 1) {
    *error = "failed to set the TLSv1.3 cipher suites";
    return false;
  }
  return true;
}

static bool setKeyPair(SSL_CTX *ssl, const TlsOptions &options, std::string *error) {
  if (!options.server && options.certFile.empty() && options.keyFile.empty()) return true;
  if (!options.certFile.empty() && SSL_CTX_use_certificate_chain_file(ssl, options.certFile.c_str()) != 1) {
    *error = "failed to load certificate file \"" + options.certFile + "\": " + tlsQueuedError("unknown error");
    return false;
  }
  if (!options.keyFile.empty() && SSL_CTX_use_PrivateKey_file(ssl, options.keyFile.c_str(), SSL_FILETYPE_PEM) != 1) {
    *error = "failed to load private key file \"" + options.keyFile + "\": " + tlsQueuedError("unknown error");
    return false;
  }
  if (SSL_CTX_check_private_key(ssl) != 1) {
    *error = "private/public key mismatch";
    return false;
  }
  return true;
}

static const char *systemCaFile() {
  for (const char *file : kSystemCaFiles)
    if (access(file, R_OK) == 0) return file;
  return nullptr;
}

static bool setVerify(SSL_CTX *ssl, const TlsOptions &options, std::string *error) {
  if (options.verify == TlsVerify::kNone) {
    SSL_CTX_set_verify(ssl, SSL_VERIFY_NONE, nullptr);
    return true;
  }
  int mode = SSL_VERIFY_PEER;
  if (options.server && options.verify != TlsVerify::kOptional) mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
  SSL_CTX_set_verify(ssl, mode, nullptr);
  SSL_CTX_set_verify_depth(ssl, kVerifyDepth);
  const char *file = options.caFile.empty() ? systemCaFile() : options.caFile.c_str();
  // without an authority, a client that shows a certificate is refused
  if (!file && options.verify == TlsVerify::kOptional) return true;
  if (!file || SSL_CTX_load_verify_locations(ssl, file, nullptr) != 1) {
    *error = "failed to load CA: " + tlsQueuedError(file ? "unknown error" : "no CA file");
    return false;
  }
  // tells clients which authorities are accepted; a list of the system's hundred would be too long
  if (options.server && !options.caFile.empty()) SSL_CTX_set_client_CA_list(ssl, SSL_load_client_CA_file(file));
  return true;
}

static bool setKeyExchange(SSL_CTX *ssl, const TlsOptions &options, std::string *error) {
  if (options.dhAuto) SSL_CTX_set_dh_auto(ssl, 1);
  if (isCurveWord(options.curve)) return true;
  int nid = OBJ_txt2nid(options.curve.c_str());
  if (nid != NID_undef && SSL_CTX_set1_groups(ssl, &nid, 1) == 1) return true;
  *error = "failed to set ECDHE curve";
  return false;
}

static bool configure(SSL_CTX *ssl, const TlsOptions &options, std::string *error) {
  // OpenSSL frees the record buffers of idle connections
  SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_options(ssl, SSL_OP_NO_SSLv3 | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET);
  SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(ssl, 0);
  SSL_CTX_set_max_early_data(ssl, 0);
  SSL_CTX_set_default_passwd_cb(ssl, noPassphrase);
  setProtocols(ssl, options.protocols);
  if (!setCiphers(ssl, options, error) || !setKeyPair(ssl, options, error) || !setVerify(ssl, options, error)) return false;
  if (!options.server) return true;
  SSL_CTX_set_max_send_fragment(ssl, kTlsClientRecordMost);
  SSL_CTX_set_options(ssl, SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_alpn_select_cb(ssl, selectAlpn, nullptr);
  return setKeyExchange(ssl, options, error);
}

/* ---- the keylog: "LABEL client_random secret", both in hexadecimal ---- */

static int hexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/** Returns the number of bytes read. */
static size_t readHex(const char *text, uint8_t *into, size_t most) {
  size_t n = 0;
  for (; n < most; n++) {
    const int high = hexDigit(text[2 * n]);
    const int low = high < 0 ? -1 : hexDigit(text[2 * n + 1]);
    if (low < 0) break;
    into[n] = static_cast<uint8_t>(high << 4 | low);
  }
  return n;
}

static void onKeylog(const SSL *ssl, const char *line) {
  TlsConn *conn = static_cast<TlsConn *>(SSL_get_app_data(ssl));
  const char *random = strchr(line, ' ');
  const char *secret = random ? strchr(random + 1, ' ') : nullptr;
  if (!conn || !secret) return;
  TlsSession *session = &conn->session;
  const std::string label(line, random - line);
  if (label == "CLIENT_RANDOM") {
    session->masterLength = readHex(secret + 1, session->masterSecret, kTlsSecretMax);
  } else if (label == "CLIENT_TRAFFIC_SECRET_0") {
    session->secretLength = readHex(secret + 1, session->clientSecret, kTlsSecretMax);
  } else if (label == "SERVER_TRAFFIC_SECRET_0") {
    session->secretLength = readHex(secret + 1, session->serverSecret, kTlsSecretMax);
  }
}

TlsContext *tlsContextNew(const TlsOptions &options, std::string *error) {
  ERR_clear_error();
  SSL_CTX *ssl = SSL_CTX_new(options.server ? TLS_server_method() : TLS_client_method());
  if (!ssl) {
    *error = "ssl context failure";
    return nullptr;
  }
  SSL_CTX_set_keylog_callback(ssl, onKeylog);
  TlsContext *context = configure(ssl, options, error) ? new (std::nothrow) TlsContext() : nullptr;
  ERR_clear_error();
  if (!context) {
    SSL_CTX_free(ssl);
    return nullptr;
  }
  context->ssl = ssl;
  context->server = options.server;
  context->verify = options.verify;
  return context;
}

void tlsContextFree(TlsContext *context) {
  if (!context) return;
  SSL_CTX_free(context->ssl);
  delete context;
}

}  // namespace tsb
