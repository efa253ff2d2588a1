//! What we subscribe to at the local broker, and what we have asked of it before.
//!
//! A broker sends one copy for each subscription that matches, so the filters of one session must not overlap: neither
//! those of the `[[publish]]` rules among themselves, nor with those of an earlier configuration that the broker still
//! has. The latter cannot be asked for, so they are remembered in a file of the state directory. A file that cannot be
//! read or written costs repeats after a change of the rules, and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use crate::config::PublishRule;
use crate::outbox::replace_file;

/// In the state directory.
const FILE: &str = "local-broker.json";
/// Largest such file: thousands of filters.
const FILE_MAX: u64 = 1024 * 1024;

/// A disk that takes longer must not keep us from the broker.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// See the file's head.
#[derive(Clone, Debug)]
pub struct Filters {
    wanted: Vec<String>,
    /// What the broker may have, as on disk.
    known: Vec<String>,
    path: PathBuf,
}

impl Filters {
    /// For these rules, with what is remembered in `state_dir`.
    pub fn of(rules: &[PublishRule], state_dir: &Path) -> Filters {
        let path = state_dir.join(FILE);
        let known = recall(&path).unwrap_or_else(|error| {
            log::warn!("{}: {error}; the local broker may go on with subscriptions of an earlier configuration", FILE);
            Vec::new()
        });
        Filters { wanted: wanted(rules), known, path }
    }

    /// What to subscribe to.
    pub fn wanted(&self) -> &[String] {
        &self.wanted
    }

    /// What the broker may still have of an earlier configuration.
    pub fn stale(&self) -> Vec<String> {
        self.known.iter().filter(|filter| !self.wanted.contains(filter)).cloned().collect()
    }

    /// The broker has nothing of us: its session is new.
    pub fn forgotten(&mut self) {
        self.known.clear();
    }

    /// Before asking: from now on the broker may have what is wanted as well.
    pub async fn asking(&mut self) {
        let added: Vec<String> = self.wanted.iter().filter(|filter| !self.known.contains(filter)).cloned().collect();
        if !added.is_empty() {
            self.known.extend(added);
            self.remember().await;
        }
    }

    /// The broker has what is wanted and nothing else.
    pub async fn settled(&mut self) {
        if self.known.iter().any(|filter| !self.wanted.contains(filter)) {
            self.known.clone_from(&self.wanted);
            self.remember().await;
        }
    }

    async fn remember(&self) {
        let (path, known) = (self.path.clone(), self.known.clone());
        let written = tokio::task::spawn_blocking(move || replace_file(&path, &serde_json::to_vec(&known)?));
        if let Ok(Ok(Err(error))) = timeout(WRITE_LIMIT, written).await {
            log::warn!("cannot write {}: {error}", self.path.display());
        }
    }
}

fn recall(path: &Path) -> io::Result<Vec<String>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(found) if found.len() > FILE_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) | Err(_) => {}
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// The filters of the rules without those that another covers; everything where two of them overlap all the same.
fn wanted(rules: &[PublishRule]) -> Vec<String> {
    // What begins with `$` never goes up.
    let mut filters: Vec<&str> = rules.iter().map(|rule| rule.topic.as_str()).filter(|f| !f.starts_with('$')).collect();
    filters.sort_unstable();
    filters.dedup();
    let all = filters.clone();
    filters.retain(|filter| !all.iter().any(|other| other != filter && covers(other, filter)));
    let meet = filters.iter().enumerate().any(|(n, a)| filters.iter().skip(n + 1).any(|b| overlap(a, b)));
    if meet || rules.is_empty() { vec!["#".into()] } else { filters.into_iter().map(str::to_owned).collect() }
}

/// Whether `wide` matches whatever `narrow` does.
fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('/');
    for level in wide.split('/') {
        match (level, narrow.next()) {
            ("#", _) => return true,
            ("+", Some(other)) if other != "#" => {}
            (level, Some(other)) if level == other => {}
            (_, Some(_) | None) => return false,
        }
    }
    narrow.next().is_none()
}

/// Whether some topic matches both.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(one), Some(other)) if one == other => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics;
    use proptest::prelude::*;

    fn rules(filters: &[&str]) -> Vec<PublishRule> {
        filters.iter().map(|topic| PublishRule { topic: (*topic).into(), ..PublishRule::default() }).collect()
    }

    #[test]
    fn without_rules_everything_is_wanted() {
        assert_eq!(wanted(&[]), ["#"]);
    }

    #[test]
    fn what_another_filter_covers_is_left_out() {
        assert_eq!(wanted(&rules(&["a/+/#", "a/b"])), ["a/+/#"]);
        assert_eq!(wanted(&rules(&["a/x", "a/#", "b/+", "b/c", "b/c", "$SYS/#"])), ["a/#", "b/+"]);
    }

    #[test]
    fn where_filters_meet_all_is_wanted() {
        assert_eq!(wanted(&rules(&["a/+", "+/b", "c"])), ["#"]);
        assert_eq!(wanted(&rules(&["a/+", "+/b/#"])), ["#"]);
        assert_eq!(wanted(&rules(&["$SYS/#"])), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn every_topic_that_a_rule_wants_matches_exactly_one_filter(
            filters in prop::collection::vec("([ab+](/[ab+]){0,2}(/#)?)|#", 1..5), topic in "[abc](/[abc]){0,3}"
        ) {
            let rules = rules(&filters.iter().map(String::as_str).collect::<Vec<_>>());
            let matching = wanted(&rules).iter().filter(|filter| topics::matches(filter, &topic)).count();
            let ruled = rules.iter().any(|rule| topics::matches(&rule.topic, &topic));
            prop_assert!(matching <= 1);
            prop_assert!(!ruled || matching == 1);
        }
    }
}
