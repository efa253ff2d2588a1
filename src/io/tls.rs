//! TLS towards the cloud: roots, our certificate, and what a failed handshake means.
//!
//! One client configuration serves every interface and attempt, so that a session ticket from one connection
//! shortens the next (R-CS-11). It is made anew when a file changed. No 0-RTT: a CONNECT could be replayed. Keys never
//! reach a log. It opens no socket and retries nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use switchback_control::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Cloud;

/// Bytes that rustls keeps for us while the kernel takes none: as much again as the kernel may hold unsent.
const BUFFER_MAX: usize = 16 * 1024;

/// What is needed to shake hands with any of the servers.
#[derive(Debug)]
pub struct Tls {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    config: Option<Arc<ClientConfig>>,
    /// When each file was last changed, as of `config` or of the last failure.
    stamps: Vec<Option<SystemTime>>,
    /// What was last said to people, so that a retry does not say it again.
    said: Option<String>,
}

/// Why no protected stream came to be.
#[derive(Debug)]
pub enum Failure {
    /// Our own files cannot be used; nothing was sent.
    Files(String),
    /// The handshake ended so.
    Handshake(io::Error),
}

impl Tls {
    /// Reads the files at once, so that a wrong path is said at the start. Never fails: the next dial reads again.
    pub fn new(cloud: &Cloud) -> Tls {
        let identity = cloud.cert_file.clone().zip(cloud.key_file.clone());
        let tls = Tls { ca: cloud.ca_file.clone(), identity, made: Mutex::default() };
        if cloud.servers.iter().any(|server| server.tls)
            && let Err(problem) = tls.config()
        {
            tls.say(problem);
        }
        tls
    }

    /// Shakes hands over `stream` with the server called `host`. No limit but the caller's.
    pub async fn connect<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config().map_err(Failure::Files)?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Failure::Files(format!("\"{host}\" is no name that a certificate could carry")))?;
        let limited = |session: &mut rustls::ClientConnection| session.set_buffer_limit(Some(BUFFER_MAX));
        let stream =
            TlsConnector::from(config).connect_with(name, stream, limited).await.map_err(Failure::Handshake)?;
        self.made().said = None;
        Ok(stream)
    }

    /// Tells people, once until it changes or a handshake succeeds.
    pub fn say(&self, sentence: String) {
        let mut made = self.made();
        if made.said.as_ref() != Some(&sentence) {
            log::warn!("{sentence}");
            made.said = Some(sentence);
        }
    }

    /// The sentence for a failed handshake, with what to do.
    pub fn explain(&self, host: &str, error: &io::Error) -> String {
        let roots = match &self.ca {
            Some(path) => format!("cloud.ca_file ({})", path.display()),
            None => "the system's root certificates (cloud.ca_file is not set)".to_owned(),
        };
        match inner(error) {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
                "the certificate of {host} was not issued by a CA in {roots}: set cloud.ca_file to the CA certificate \
                 of this server"
            ),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => format!(
                "the certificate of {host} is for another name: name the server in cloud.servers as its certificate does"
            ),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => format!(
                "the certificate of {host} is not valid yet by this machine's clock: set the clock (timedatectl)"
            ),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => format!("the certificate of {host} has expired by this machine's clock: renew it, or set the clock"),
            Some(rustls::Error::AlertReceived(alert)) if about_identity(*alert) => {
                format!("{host} refused our certificate ({alert:?}): check cloud.cert_file and cloud.key_file")
            }
            _ => format!("TLS with {host} failed ({error}); roots are {roots}"),
        }
    }

    /// The configuration for the files as they are now. While changed files cannot be used, the one before goes on
    /// serving: half a certificate renewal must not cost the connection.
    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let stamps = self.stamps();
        let mut made = self.made();
        if let Some(config) = &made.config
            && made.stamps == stamps
        {
            return Ok(config.clone());
        }
        match (self.load(), &made.config) {
            (Ok(config), _) => {
                let config = Arc::new(config);
                *made = Made { config: Some(config.clone()), stamps, said: None };
                Ok(config)
            }
            (Err(problem), Some(before)) => {
                log::warn!("{problem}; going on with what was read before");
                let before = before.clone();
                made.stamps = stamps;
                Ok(before)
            }
            (Err(problem), None) => Err(problem),
        }
    }

    fn load(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(self.roots()?);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some((chain, key)) => {
                let chain_path = chain.display();
                let chain = certificates(chain).map_err(|error| format!("cloud.cert_file: {chain_path}: {error}"))?;
                let key_path = key.display();
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("cloud.key_file: {key_path}: {error}"))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| format!("cloud.cert_file and cloud.key_file do not fit together: {error}"))
            }
        }
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                let found =
                    certificates(path).map_err(|error| format!("cloud.ca_file: {}: {error}", path.display()))?;
                let (added, _) = store.add_parsable_certificates(found);
                if added == 0 {
                    return Err(format!("cloud.ca_file: {}: no CA certificate in it", path.display()));
                }
            }
            None => {
                let (added, _) = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if added == 0 {
                    return Err("this system has no root certificates: install the package ca-certificates, or set \
                                cloud.ca_file"
                        .into());
                }
            }
        }
        Ok(store)
    }

    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let stamp = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        let identity = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        self.ca.iter().chain(identity).map(|path| stamp(path)).collect()
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?.collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in PEM form in it".into()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// What a TLS failure is called, in a handshake or later; `None` when it is not TLS that failed. A server that checks
/// our certificate under TLS 1.3 says so only after the handshake.
pub fn reason(error: &io::Error) -> Option<Reason> {
    Some(match inner(error)? {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Reason::ClockWrong,
        rustls::Error::AlertReceived(alert) if about_identity(*alert) => Reason::Authentication,
        _ => Reason::Tls,
    })
}

/// Whether the peer answered with something that is not TLS at all.
pub fn is_foreign(error: &io::Error) -> bool {
    matches!(inner(error), Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

fn about_identity(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

fn inner(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(ca: Option<PathBuf>) -> Cloud {
        Cloud {
            servers: vec![],
            client_id: "x".into(),
            ca_file: ca,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
            base: String::new(),
            log: crate::config::CloudLog::Off,
            session_expiry: Default::default(),
            will_delay: Default::default(),
        }
    }

    #[test]
    fn a_ca_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let problem = || Tls::new(&cloud(Some(path.clone()))).config().unwrap_err();
        assert!(problem().contains("cloud.ca_file") && problem().contains("ca.pem"), "{}", problem());
        std::fs::write(&path, "nothing").unwrap();
        assert!(problem().contains("no certificate"), "{}", problem());
    }

    #[test]
    fn a_refused_client_certificate_is_a_matter_of_credentials() {
        let error = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let refused = error(rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(reason(&refused), Some(Reason::Authentication));
        let early = error(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
        assert_eq!(reason(&early), Some(Reason::ClockWrong));
        let other = error(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert_eq!(reason(&other), Some(Reason::Tls));
        assert_eq!(reason(&io::ErrorKind::ConnectionReset.into()), None);
    }
}
