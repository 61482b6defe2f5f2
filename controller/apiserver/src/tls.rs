//! The server's certificates: a CA kept in the data directory, and a certificate for this run signed by it.
//!
//! `server` calls it at start. Invariant: the CA survives restarts, so kubeconfigs stay good; its key is readable by the
//! owner only.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Failures of setting up TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the CA cannot be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was attempted.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate or key cannot be made or understood.
    #[error("cannot make the {object}")]
    Certificate {
        /// Which one.
        object: &'static str,
        /// The cause.
        source: rcgen::Error,
    },
    /// The TLS library refuses the certificate.
    #[error("cannot configure TLS")]
    Configuration(#[from] tokio_rustls::rustls::Error),
}

/// What a server needs to speak TLS, and its clients to trust it.
pub(crate) struct Identity {
    pub(crate) ca_pem: String,
    pub(crate) config: Arc<ServerConfig>,
}

impl Identity {
    /// `names` are the DNS names and addresses clients will use.
    pub(crate) fn load_or_create(directory: &Path, names: &[String]) -> Result<Self, TlsError> {
        let (ca_pem, issuer) = authority(directory)?;
        let key = KeyPair::generate().map_err(failed("server key"))?;
        let certificate = server_params(names)
            .and_then(|params| params.signed_by(&key, &issuer))
            .map_err(failed("server certificate"))?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem, config: Arc::new(config) })
    }
}

/// The CA: its certificate, and what signs with it.
fn authority(directory: &Path) -> Result<(String, Issuer<'static, KeyPair>), TlsError> {
    let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
    // The key is written last: if it is there, both are.
    if key_path.exists() {
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(failed("CA key"))?;
        // The same parameters and key give the same issuer as when the certificate was made.
        return Ok((read(&certificate_path)?, Issuer::new(authority_params(), key)));
    }
    let key = KeyPair::generate().map_err(failed("CA key"))?;
    let certificate = authority_params().self_signed(&key).map_err(failed("CA certificate"))?.pem();
    write(&certificate_path, &certificate, 0o644)?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    Ok((certificate, Issuer::new(authority_params(), key)))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "quilla-apiserver-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn server_params(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "quilla-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What every server certificate is good for, whatever else is asked for.
pub(crate) fn standard_names(listen: IpAddr) -> Vec<String> {
    let mut names =
        ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names
}

fn failed(object: &'static str) -> impl Fn(rcgen::Error) -> TlsError {
    move |source| TlsError::Certificate { object, source }
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })
}

/// Whole or not at all, also across a crash.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let partial = path.with_extension("partial");
    let attempt = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    attempt().map_err(|source| TlsError::File { operation: "write", path: path.to_owned(), source })
}
