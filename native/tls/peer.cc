/*
 * The peer: protocol and suite as the log and SHOW print them, and whether its certificate carries a name. The rules for names
 * are libtls's, which PgBouncer uses. A name in subjectAltName of the wanted kind counts, else the common name. `*` stands for
 * the first label only, and never for a whole top-level domain.
 */
#include <arpa/inet.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/objects.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <strings.h>

#include "tls/tls.h"

namespace tsb {

/* ---- protocol and suite ---- */

static std::string shortName(int nid) {
  const char *name = nid == NID_undef ? nullptr : OBJ_nid2sn(nid);
  return name ? name : "";
}

/** The key exchange as the connecting side sees it: from the server's temporary key. */
static std::string exchangeOfClient(const TlsConn *conn) {
  EVP_PKEY *key = nullptr;
  std::string text;
  if (SSL_get_peer_tmp_key(conn->ssl, &key) != 1 || !key) return text;
  if (EVP_PKEY_get_base_id(key) == EVP_PKEY_DH) text = "DH=" + std::to_string(EVP_PKEY_get_size(key) * 8);
  EVP_PKEY_free(key);
  return text;
}

int tlsOwnDhBits(SSL *ssl) {
  EVP_PKEY *key = nullptr;
  if (SSL_get_tmp_key(ssl, &key) != 1 || !key) return 0;
  const int bits = EVP_PKEY_get_base_id(key) == EVP_PKEY_DH ? EVP_PKEY_get_size(key) * 8 : 0;
  EVP_PKEY_free(key);
  return bits;
}

/** The key exchange as the accepting side sees it. TLS 1.3 suites do not name it. */
static std::string exchangeOfServer(const TlsConn *conn, const SSL_CIPHER *cipher) {
  const int kind = SSL_CIPHER_get_kx_nid(cipher);
  if (kind == NID_kx_dhe) return conn->dhBits > 0 ? "DH=" + std::to_string(conn->dhBits) : "DH=?";
  if (kind != NID_kx_ecdhe) return "";
  const std::string curve = shortName(static_cast<int>(SSL_get_shared_group(conn->ssl, 0)));
  return curve.empty() ? "" : "ECDH=" + curve;
}

TlsInfo tlsInfoOf(const TlsConn *conn) {
  if (conn->records) return conn->known;
  TlsInfo info;
  const SSL_CIPHER *cipher = SSL_get_current_cipher(conn->ssl);
  info.version = SSL_get_version(conn->ssl);
  info.cipher = cipher ? SSL_CIPHER_get_name(cipher) : "(NONE)";
  if (cipher) info.exchange = conn->session.server ? exchangeOfServer(conn, cipher) : exchangeOfClient(conn);
  ERR_clear_error();
  return info;
}

/* ---- names ---- */

enum class Match { kNo, kYes, kMalicious };

struct Wanted {
  const std::string &name;
  /** of a user: users whose names differ in case are two, and no wildcard stands for a user */
  bool user;
  uint8_t address[16];
  /** 4, 16, or 0 for a host name */
  int addressLength;
};

static Wanted wanted(const std::string &name, bool user) {
  Wanted w = {name, user, {}, 0};
  if (inet_pton(AF_INET, name.c_str(), w.address) == 1)
    w.addressLength = 4;
  else if (inet_pton(AF_INET6, name.c_str(), w.address) == 1)
    w.addressLength = 16;
  return w;
}

/** "*.example.com" covers "a.example.com" and nothing else; "*.com" and "*x.com" cover nothing. */
static bool wildcardMatches(const std::string &pattern, const std::string &name) {
  if (pattern.size() < 3 || pattern[0] != '*' || pattern[1] != '.' || pattern[2] == '.') return false;
  const size_t second = pattern.find('.', 2);
  if (second == std::string::npos || (second + 1 < pattern.size() && pattern[second + 1] == '.')) return false;
  const size_t dot = name.find('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == name.size()) return false;
  return strcasecmp(pattern.c_str() + 1, name.c_str() + dot) == 0;
}

static bool textMatches(const std::string &pattern, const Wanted &w) {
  if (w.user) return pattern == w.name;
  return strcasecmp(pattern.c_str(), w.name.c_str()) == 0 || wildcardMatches(pattern, w.name);
}

static std::string textOf(const ASN1_STRING *string) {
  return std::string(reinterpret_cast<const char *>(ASN1_STRING_get0_data(string)),
                     static_cast<size_t>(ASN1_STRING_length(string)));
}

static Match matchDnsName(const ASN1_STRING *string, const Wanted &w, std::string *error) {
  if (ASN1_STRING_type(string) != V_ASN1_IA5STRING) return Match::kNo;
  const std::string text = textOf(string);
  if (text.find('\0') != std::string::npos) {
    *error = "error verifying name '" + w.name + "': NUL byte in subjectAltName, probably a malicious certificate";
    return Match::kMalicious;
  }
  if (text == " ") {
    *error = "error verifying name '" + w.name + "': a dNSName of \" \" must not be used";
    return Match::kMalicious;
  }
  return textMatches(text, w) ? Match::kYes : Match::kNo;
}

/** @param present set when the certificate lists names of the wanted kind: then its common name does not count (RFC 6125). */
static Match matchAltNames(X509 *cert, const Wanted &w, bool *present, std::string *error) {
  GENERAL_NAMES *names = static_cast<GENERAL_NAMES *>(X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr));
  if (!names) return Match::kNo;
  Match match = Match::kNo;
  for (int i = 0; i < sk_GENERAL_NAME_num(names) && match == Match::kNo; i++) {
    const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
    if (name->type == GEN_DNS && w.addressLength == 0) {
      *present = true;
      match = matchDnsName(name->d.dNSName, w, error);
    } else if (name->type == GEN_IPADD && w.addressLength > 0) {
      *present = true;
      const ASN1_STRING *address = name->d.iPAddress;
      if (ASN1_STRING_length(address) == w.addressLength &&
          memcmp(ASN1_STRING_get0_data(address), w.address, static_cast<size_t>(w.addressLength)) == 0)
        match = Match::kYes;
    }
  }
  GENERAL_NAMES_free(names);
  return match;
}

static Match matchCommonName(X509 *cert, const Wanted &w, std::string *error) {
  const X509_NAME *subject = X509_get_subject_name(cert);
  const int at = subject ? X509_NAME_get_index_by_NID(subject, NID_commonName, -1) : -1;
  if (at < 0) return Match::kNo;
  const std::string text = textOf(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  if (text.find('\0') != std::string::npos) {
    *error = "error verifying name '" + w.name + "': NUL byte in Common Name field, probably a malicious certificate";
    return Match::kMalicious;
  }
  if (w.addressLength > 0) return text == w.name ? Match::kYes : Match::kNo;
  return textMatches(text, w) ? Match::kYes : Match::kNo;
}

/** The common name always counts for a user; for a host it does only if the certificate lists no other names. */
static Match matchName(X509 *cert, const std::string &name, bool user, std::string *error) {
  // no valid name contains a NUL byte
  if (name.find('\0') != std::string::npos) return Match::kNo;
  const Wanted w = wanted(name, user);
  bool altNames = false;
  Match match = matchAltNames(cert, w, &altNames, error);
  if (match == Match::kNo && (user || !altNames)) match = matchCommonName(cert, w, error);
  ERR_clear_error();
  return match;
}

/* ---- the peer's certificate ---- */

namespace {

/** The certificate of the peer, or null; of a continued connection it is made from its bytes. */
class PeerCert {
 public:
  explicit PeerCert(const TlsConn *conn) {
    if (!conn->records) {
      cert = SSL_get0_peer_certificate(conn->ssl);
      if (cert) X509_up_ref(cert);
      return;
    }
    const unsigned char *bytes = reinterpret_cast<const unsigned char *>(conn->certificate.data());
    if (!conn->certificate.empty()) cert = d2i_X509(nullptr, &bytes, static_cast<long>(conn->certificate.size()));
    ERR_clear_error();
  }
  ~PeerCert() { X509_free(cert); }
  PeerCert(const PeerCert &) = delete;

  X509 *cert = nullptr;
};

}  // namespace

bool tlsPeerCertProvided(const TlsConn *conn) {
  if (conn->records) return !conn->certificate.empty();
  return conn->established && SSL_get0_peer_certificate(conn->ssl);
}

std::string tlsPeerCertSubject(const TlsConn *conn) {
  const PeerCert peer(conn);
  char *line = peer.cert ? X509_NAME_oneline(X509_get_subject_name(peer.cert), nullptr, 0) : nullptr;
  const std::string subject = line ? line : "";
  OPENSSL_free(line);
  return subject;
}

/** The hash function of the signature; RFC 5929 replaces MD5 and SHA-1. Null where the signature names none (Ed25519). */
static const EVP_MD *bindingDigest(X509 *cert) {
  int nid = NID_undef;
  if (X509_get_signature_info(cert, &nid, nullptr, nullptr, nullptr) != 1) return nullptr;
  return nid == NID_md5 || nid == NID_sha1 ? EVP_sha256() : EVP_get_digestbynid(nid);
}

static std::string certHash(X509 *cert) {
  const EVP_MD *digest = cert ? bindingDigest(cert) : nullptr;
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  const bool done = digest && X509_digest(cert, digest, hash, &length) == 1;
  ERR_clear_error();
  return done ? std::string(reinterpret_cast<const char *>(hash), length) : std::string();
}

std::string tlsCertHash(const TlsConn *conn, bool own) {
  if (own) return conn->records ? std::string() : certHash(SSL_get_certificate(conn->ssl));
  const PeerCert peer(conn);
  return certHash(peer.cert);
}

bool tlsPeerCertContainsName(TlsConn *conn, const std::string &name) {
  const PeerCert peer(conn);
  return peer.cert && matchName(peer.cert, name, true, &conn->error) == Match::kYes;
}

bool tlsPeerCertVerifyHost(TlsConn *conn) {
  const PeerCert peer(conn);
  if (!peer.cert) {
    conn->error = "no server certificate";
    return false;
  }
  const Match match = matchName(peer.cert, conn->host, false, &conn->error);
  if (match == Match::kNo) conn->error = "name `" + conn->host + "' not present in server certificate";
  return match == Match::kYes;
}

}  // namespace tsb
