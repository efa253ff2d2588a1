//! Who may come in, and which topics they may use.
//!
//! Two files in mosquitto's own formats, read once at the start: users with salted PBKDF2-SHA512 hashes, as
//! mosquitto_passwd writes them, and rules per user. Without them everybody may do everything. What cannot be read
//! or understood allows nothing. A subscription is allowed when one rule covers all of its filter; there is no deny.
//! Passwords are never kept, logged or compared here: the library does that in constant time, and an unknown user takes
//! as long as a known one.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;

use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA512};

use crate::config::LocalConfig;
use crate::topics;

/// Users, and rules: a gateway has a handful of applications, and every rule is asked for every message.
const USERS_MAX: usize = 256;
const RULES_MAX: usize = 1024;

/// Largest file: far more than so many lines need.
const FILE_MAX: u64 = 256 * 1024;

/// Hashing more often than this would take seconds.
const ITERATIONS_MAX: u32 = 1_000_000;

/// Bytes of a hash.
const HASH_BYTES: usize = 64;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Access {
    /// `None` lets everybody in.
    users: Option<HashMap<String, Hash>>,
    /// `None` allows every topic.
    rules: Option<Vec<Rule>>,
}

/// What a client says of itself. Its `Debug` keeps the password to itself.
#[derive(Clone, Default)]
pub struct Credentials {
    pub user: Option<String>,
    pub password: Vec<u8>,
}

/// What a client wants to do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Subscribe,
    Publish,
}

struct Hash {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

#[derive(Debug)]
struct Rule {
    whose: Whose,
    subscribe: bool,
    publish: bool,
    filter: String,
}

#[derive(Debug)]
enum Whose {
    Anonymous,
    User(String),
    /// `pattern`: `%u` and `%c` stand for the user and the client identifier.
    Everybody,
}

impl Access {
    /// Reads what the configuration names. What goes wrong is logged, and allows nothing.
    pub fn load(local: &LocalConfig) -> Access {
        let users = local.password_file.as_deref().map(|path| {
            let users = read(path).and_then(|text| parse_users(&text));
            users.unwrap_or_else(|why| {
                log::error!("local.password_file: {}: {why}; no local MQTT client is let in", path.display());
                HashMap::new()
            })
        });
        let rules = local.acl_file.as_deref().map(|path| {
            let rules = read(path).and_then(|text| parse_rules(&text));
            rules.unwrap_or_else(|why| {
                log::error!("local.acl_file: {}: {why}; local MQTT clients may use no topic", path.display());
                Vec::new()
            })
        });
        Access { users, rules }
    }

    /// Whether the client is let in without being asked.
    pub fn asks_nobody(&self) -> bool {
        self.users.is_none()
    }

    /// Whether this user has this password. Takes as long as the hash was made to take: not for the loop's thread.
    pub fn knows(&self, credentials: &Credentials) -> bool {
        let Some(users) = &self.users else { return true };
        let stranger =
            Hash { iterations: NonZeroU32::MIN.saturating_add(100), salt: vec![0; 12], hash: vec![0; HASH_BYTES] };
        let known = credentials.user.as_ref().and_then(|user| users.get(user));
        let Hash { iterations, salt, hash } = known.unwrap_or(&stranger);
        let right = pbkdf2::verify(PBKDF2_HMAC_SHA512, *iterations, salt, &credentials.password, hash).is_ok();
        right && known.is_some()
    }

    /// Whether a client may publish to this topic, or subscribe to this filter.
    pub fn allows(&self, user: Option<&str>, client: &str, deed: Deed, topic: &str) -> bool {
        let Some(rules) = &self.rules else { return true };
        rules.iter().any(|rule| {
            let right_deed = match deed {
                Deed::Subscribe => rule.subscribe,
                Deed::Publish => rule.publish,
            };
            right_deed
                && match &rule.whose {
                    Whose::Anonymous => user.is_none() && covers(&rule.filter, topic),
                    Whose::User(name) => user == Some(name) && covers(&rule.filter, topic),
                    Whose::Everybody => {
                        filled_in(&rule.filter, user, client).is_some_and(|filter| covers(&filter, topic))
                    }
                }
        })
    }
}

/// A pattern with names put in; `None` where there is no name, or one that would itself be a pattern or a level more.
fn filled_in(pattern: &str, user: Option<&str>, client: &str) -> Option<String> {
    let plain = |name: &str| !name.is_empty() && !name.contains(['+', '#', '/', '%']);
    let user = user.filter(|name| plain(name));
    if (pattern.contains("%u") && user.is_none()) || (pattern.contains("%c") && !plain(client)) {
        return None;
    }
    Some(pattern.replace("%u", user.unwrap_or_default()).replace("%c", client))
}

/// Whether everything that `asked` matches is matched by `allowed`. A topic is a filter that matches itself.
fn covers(allowed: &str, asked: &str) -> bool {
    if allowed.starts_with(['+', '#']) && asked.starts_with('$') {
        return false;
    }
    let (mut allowed, mut asked) = (allowed.split('/'), asked.split('/'));
    loop {
        match (allowed.next(), asked.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_MAX {
        return Err(format!("has more than {FILE_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Never quotes a line: it may hold a password in clear.
fn parse_users(text: &str) -> Result<HashMap<String, Hash>, String> {
    let mut users = HashMap::new();
    for (number, line) in lines(text) {
        let user = parse_user(line);
        let (name, hash) =
            user.ok_or(format!("line {number} is not what mosquitto_passwd -H sha512-pbkdf2 writes, NAME:$7$…"))?;
        users.insert(name.to_owned(), hash);
    }
    if users.len() > USERS_MAX { Err(format!("has more than {USERS_MAX} users")) } else { Ok(users) }
}

/// `NAME:$7$ITERATIONS$SALT$HASH`, salt and hash in base64.
fn parse_user(line: &str) -> Option<(&str, Hash)> {
    let (name, rest) = line.split_once(":$7$")?;
    let (iterations, rest) = rest.split_once('$')?;
    let (salt, hash) = rest.split_once('$')?;
    let iterations = iterations.parse().ok().filter(|iterations: &NonZeroU32| iterations.get() <= ITERATIONS_MAX)?;
    let hash = from_base64(hash).filter(|hash| hash.len() == HASH_BYTES)?;
    Some((name, Hash { iterations, salt: from_base64(salt)?, hash })).filter(|_| !name.is_empty())
}

fn parse_rules(text: &str) -> Result<Vec<Rule>, String> {
    let (mut rules, mut user) = (Vec::new(), None);
    for (number, line) in lines(text) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let whose = match word {
            "user" if !rest.is_empty() => {
                user = Some(rest.to_owned());
                continue;
            }
            "topic" => user.clone().map_or(Whose::Anonymous, Whose::User),
            "pattern" => Whose::Everybody,
            _ => return Err(format!("line {number}: \"{word}\" is not understood; write user, topic or pattern")),
        };
        let (subscribe, publish, filter) = match rest.split_once(char::is_whitespace) {
            Some(("read", filter)) => (true, false, filter),
            Some(("write", filter)) => (false, true, filter),
            Some(("readwrite", filter)) => (true, true, filter),
            Some(("deny", _)) => return Err(format!("line {number}: there is no deny; leave out what is not allowed")),
            Some(_) | None => (true, true, rest),
        };
        let filter = filter.trim().to_owned();
        if !topics::valid_filter(&filter) {
            return Err(format!("line {number}: \"{filter}\" is not a topic filter"));
        }
        rules.push(Rule { whose, subscribe, publish, filter });
    }
    if rules.len() > RULES_MAX { Err(format!("has more than {RULES_MAX} rules")) } else { Ok(rules) }
}

/// RFC 4648 section 4.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hash").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What mosquitto_passwd made of the password "secret".
    const LINE: &str = "gw:$7$101$I8XSt7+FbZbg+pT8$O+LBRm2p1esmknQLQaCsgm+LVM6zmMur58pWn3Pjn4g8QqOdyhAfBa5INVP1su1mPWexpmQX6dohDcVFFo/LdA==";

    fn access(users: Option<&str>, rules: Option<&str>) -> Access {
        Access { users: users.map(|t| parse_users(t).unwrap()), rules: rules.map(|t| parse_rules(t).unwrap()) }
    }

    #[test]
    fn a_password_of_mosquittos_own_file_is_known_and_no_other() {
        let access = access(Some(&format!("# users\n\n{LINE}\n")), None);
        let knows = |user: Option<&str>, password: &str| {
            access.knows(&Credentials { user: user.map(str::to_owned), password: password.into() })
        };
        assert!(knows(Some("gw"), "secret"));
        assert!(!knows(Some("gw"), "Secret") && !knows(Some("gw"), "") && !knows(Some("other"), "secret"));
        assert!(!knows(None, "secret") && !knows(None, ""));
        assert!(!access.asks_nobody() && Access::default().asks_nobody());
    }

    #[test]
    fn a_file_with_a_line_that_is_no_user_lets_nobody_in_and_its_error_quotes_nothing() {
        for line in ["gw:secret", "gw:$6$c2FsdA==$aGFzaA==", ":$7$101$AA==$AA==", &LINE.replace("$101$", "$0$")] {
            let error = parse_users(line).unwrap_err();
            assert!(error.starts_with("line 1") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn rules_allow_what_they_cover_and_nothing_else() {
        let access = access(
            None,
            Some("topic read open/#\nuser a\ntopic read cmd/+/x\ntopic write up/#\ntopic both\npattern own/%u/%c/#\n"),
        );
        let may = |user, deed, topic| access.allows(user, "c", deed, topic);
        use Deed::{Publish, Subscribe};
        assert!(
            may(None, Subscribe, "open/#") && !may(None, Publish, "open/x") && !may(Some("a"), Subscribe, "open/x")
        );
        assert!(may(Some("a"), Subscribe, "cmd/1/x") && may(Some("a"), Subscribe, "cmd/+/x"));
        assert!(!may(Some("a"), Subscribe, "cmd/#") && !may(Some("a"), Subscribe, "cmd/1/#"));
        assert!(may(Some("a"), Publish, "up/1/2") && may(Some("a"), Publish, "up") && !may(Some("b"), Publish, "up/1"));
        assert!(
            may(Some("a"), Publish, "both") && may(Some("a"), Subscribe, "both") && !may(Some("a"), Subscribe, "#")
        );
        assert!(may(Some("z"), Publish, "own/z/c/1") && !may(Some("z"), Publish, "own/y/c/1"));
        assert!(!may(Some("+"), Subscribe, "own/+/c/1") && !may(None, Subscribe, "own//c/1"));
        assert!(!covers("#", "$SYS/x") && covers("$SYS/#", "$SYS/x"));
        for bad in ["topic deny x", "allow x", "topic a/#/b", "topic", "user"] {
            assert!(parse_rules(bad).is_err(), "{bad}");
        }
    }
}
