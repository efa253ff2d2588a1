//! Why: the operator's language (R-CL-13).
//!
//! One word in kebab-case for every way a connection can fail, end or be refused. The same words stand in
//! `status`, the journal, the black box, D-Bus and the cloud's documents. Nothing here decides anything,
//! but for `Blame`: whose fault a reason is, which is what the back-off and the walk ask.

use core::fmt;
use core::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $blame:ident;)*) => {
        /// Why a connection failed, ended, or was not tried.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, for parsers and documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The word users read.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $word,)* }
            }

            /// Whose fault it is.
            pub const fn blame(self) -> Blame {
                match self { $(Reason::$variant => Blame::$blame,)* }
            }
        }
    };
}

/// Whose fault a failure is. Local faults are answered at once over the next uplink, the server's are spread
/// (R-CL-14), credentials are retried slowly (R-CS-10), and our own deeds are nobody's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// This interface, or silence that may be its fault: try the next.
    Path,
    /// The server answered, and would not have us: the path is fine.
    Server,
    /// The server answered, and does not believe us: trying often helps nobody.
    Credentials,
    /// Another client uses our identity (R-CS-5).
    Identity,
    /// An operator, or we ourselves, wanted it.
    Ours,
}

reasons! {
    /// No carrier.
    NoLink = "no-link", Path;
    /// A link, but no address on it.
    NoAddress = "no-address", Path;
    /// NetworkManager has no profile for it, or was told to leave it alone.
    NoProfile = "no-profile", Path;
    /// Wi-Fi refused the key, or none is stored.
    NoCredentials = "no-credentials", Path;
    /// The uplink's own name servers did not answer, or do not know the name.
    Dns = "dns", Path;
    /// The kernel or a router says the address cannot be reached.
    NoRoute = "no-route", Path;
    /// The server's address did not answer.
    NoServer = "no-server", Path;
    /// The proxy could not be reached.
    Proxy = "proxy", Path;
    /// The proxy refused.
    ProxyRefused = "proxy-refused", Path;
    /// No modem present.
    NoModem = "no-modem", Path;
    /// SIM missing, locked or failed.
    Sim = "sim", Path;
    /// Not registered in a cellular network.
    NoRegistration = "no-registration", Path;
    /// The cellular network denied the registration.
    RegistrationDenied = "registration-denied", Path;
    /// No data bearer.
    NoBearer = "no-bearer", Path;
    /// A bearer, but nothing comes back through it.
    BearerWithoutConnectivity = "bearer-without-connectivity", Path;
    /// A portal answers in place of the server.
    CaptivePortal = "captive-portal", Path;
    /// The server's certificate or the TLS handshake failed.
    Tls = "tls", Path;
    /// The local clock is before the certificate's first day.
    ClockWrong = "clock-wrong", Path;
    /// The server refused the name, password or certificate.
    Authentication = "authentication", Credentials;
    /// The server's machine answers, but nothing listens there or it will not speak with us.
    Refused = "refused", Server;
    /// The server speaks another version of MQTT than we asked for.
    Version = "version", Server;
    /// The server ended the connection.
    ServerShutDown = "server-shut-down", Server;
    /// Another client connected with our identity.
    SessionTakenOver = "session-taken-over", Identity;
    /// The server told us to use another.
    ServerMoved = "server-moved", Server;
    /// Nothing inbound within the dead limit.
    KeepaliveLimit = "keepalive-limit", Path;
    /// An acknowledgement did not come in time.
    AcknowledgementLimit = "acknowledgement-limit", Path;
    /// Too many packets get lost to be of use.
    Loss = "loss", Path;
    /// The server answered, and then did not finish in time: it hangs, or something on the way eats large packets. Other
    /// paths are tried as for any fault of the server, not at once.
    TimeLimit = "time-limit", Server;
    /// The kernel ended the connection, or a reset came back from the path.
    Reset = "reset", Path;
    /// The server broke the protocol.
    Protocol = "protocol", Server;
    /// An operator asked for it.
    User = "user", Ours;
    /// The gateway was suspended.
    Sleep = "sleep", Ours;
    /// An update is being installed.
    Update = "update", Ours;
    /// The daemon is stopping or starting.
    Restart = "restart", Ours;
    /// The session moved to another interface.
    InterfaceChange = "interface-change", Ours;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Reason, ()> {
        Reason::ALL.iter().copied().find(|r| r.as_str() == text).ok_or(())
    }
}
