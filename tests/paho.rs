//! Eclipse paho's interoperability tests against the local listener.
//!
//! Another project's view of what an MQTT server does. The suite is not ours and not here: PAHO_MQTT_TESTING names a
//! clone of eclipse/paho.mqtt.testing; without it, or without Python, the test says so and passes. Each case runs in a
//! process and against a server of its own, so that none finds another's messages. What a case asks for that the
//! listener says it does not do stands in `NOT_SERVED`, with why.

#[allow(dead_code, reason = "shared with the tests of the listener, which use all of it")]
#[path = "applications/client.rs"]
mod client;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use client::{Mode, Server, config, free_address};

/// Cases that fail by our choice, with their version where the other one passes.
const NOT_SERVED: [(&str, &str); 4] = [
    ("test_subscribe_failure 5", "wants 0x80 for a topic that is not allowed; MQTT 5's word for that is 0x87"),
    ("test_server_topic_alias", "topic aliases are optional, and save nothing on the loopback"),
    ("test_server_keep_alive", "wants a broker set up to shorten the keep alive; ours takes the client's"),
    ("test_shared_subscriptions", "optional, and CONNACK says that they are not available"),
];

/// Runs one case of a script. The scripts read a port from their arguments and give unittest the same ones, which it
/// does not understand.
const DRIVER: &str = "\
import runpy, sys, unittest
script, port, case = sys.argv[1:]
main = unittest.main
unittest.main = lambda: main(argv=[script, case])
sys.argv = [script, '-p', port]
sys.path.insert(0, '.')
runpy.run_path(script, run_name='__main__')
";

/// For this case the suite wants a server that is set up to refuse a topic.
const REFUSED: &str = "test_subscribe_failure";

const SUITES: [(&str, &str); 2] = [("client_test.py", "3.1.1"), ("client_test5.py", "5")];

#[test]
fn the_public_interoperability_tests_pass() {
    let Some(suite) = suite() else {
        println!("skipped: set PAHO_MQTT_TESTING to a clone of github.com/eclipse/paho.mqtt.testing");
        return;
    };
    let mut failed = Vec::new();
    for (script, version) in SUITES {
        for case in cases(&suite.join(script)) {
            let excuse = NOT_SERVED.iter().find(|(name, _)| *name == case || *name == format!("{case} {version}"));
            let server = if case == REFUSED { restricted() } else { Server::start(Mode::Accept) };
            let output = Command::new("python3")
                .args(["-B", "-c", DRIVER, script, &server.address.port().to_string(), &format!("Test.{case}")])
                .current_dir(&suite)
                .output()
                .expect("python3 runs");
            let passed = output.status.success() && String::from_utf8_lossy(&output.stderr).contains("Ran 1 test");
            let word = match (passed, excuse) {
                (true, None) => "passed".into(),
                (false, Some((_, why))) => format!("not served: {why}"),
                (true, Some(_)) => "passed, but is said not to be served".into(),
                (false, None) => format!("FAILED\n{}", String::from_utf8_lossy(&output.stderr)),
            };
            println!("MQTT {version} {case}: {word}");
            if passed == excuse.is_some() {
                failed.push(format!("{script} {case}"));
            }
            server.stop();
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// A server where clients may use the topics below `allowed` only.
fn restricted() -> Server {
    let dir = tempfile::tempdir().expect("a directory");
    let rules = dir.path().join("acl");
    std::fs::write(&rules, "topic readwrite allowed/#\n").expect("the rules are written");
    let mut config = config(Vec::new(), free_address());
    config.local.acl_file = Some(rules);
    Server::configured(Mode::Accept, config, Arc::new(dir))
}

fn suite() -> Option<PathBuf> {
    let clone = PathBuf::from(std::env::var_os("PAHO_MQTT_TESTING")?).join("interoperability");
    SUITES.iter().all(|(script, _)| clone.join(script).exists()).then_some(clone)
}

/// The names of the tests in a script.
fn cases(script: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(script).expect("the suite can be read");
    let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("def test"));
    names.filter_map(|rest| Some(format!("test{}", rest.split_once('(')?.0))).collect()
}
