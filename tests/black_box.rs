//! The black box from outside: what is read back after rotation, reboots, power cuts and full disks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback::io::black_box::{BlackBox, FILE_BYTES_MAX, Kind, LINE_BYTES_MAX, Query};

const ALL: Query = Query { since: None, boot_only: false, limit: usize::MAX };

#[tokio::test]
async fn a_line_carries_time_uptime_boot_and_kind() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Event, "link wlan0 \"down\"");
    recorder.note(Kind::Action, "dial wwan0 server 0 #8");
    let lines = recorder.read(ALL).await;
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(first["line"], "link wlan0 \"down\"");
    assert_eq!(first["kind"], "event");
    assert_eq!(first["boot"].as_str().unwrap().len(), 36);
    assert!(first["uptime_ms"].as_u64().unwrap() > 0);
    let time = first["time"].as_str().unwrap();
    assert_eq!((time.len(), time.ends_with('Z')), ("2026-11-20T10:00:00.123456Z".len(), true), "{time}");
    assert!(lines[0].starts_with("{\"time\":"), "{}", lines[0]);
    assert!(lines[1].contains("\"kind\":\"action\""));
}

#[tokio::test]
async fn lines_survive_a_restart_and_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    let old = r#"{"time":"2020-01-01T00:00:00.000000Z","uptime_ms":5,"boot":"another","kind":"event","line":"old"}"#;
    fs::write(dir.path().join("black-box.jsonl"), format!("{old}\n")).unwrap();
    let first = BlackBox::open(dir.path());
    first.note(Kind::Event, "one");
    first.close();
    let second = BlackBox::open(dir.path());
    second.note(Kind::Event, "two");
    assert_eq!(texts(&second.read(ALL).await), ["old", "one", "two"]);
    assert_eq!(texts(&second.read(Query { boot_only: true, ..ALL }).await), ["one", "two"]);
    let since = "2021-01-01T00:00:00Z".parse().ok();
    assert_eq!(texts(&second.read(Query { since, ..ALL }).await), ["one", "two"]);
    assert_eq!(texts(&second.read(Query { limit: 2, ..ALL }).await), ["one", "two"]);
    assert_eq!(second.read(Query { limit: 0, ..ALL }).await.len(), 0);
}

#[tokio::test]
async fn a_line_torn_by_a_power_cut_is_skipped_and_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Event, "whole");
    recorder.note(Kind::Event, "torn");
    recorder.close();
    drop(recorder);
    let path = dir.path().join("black-box.jsonl");
    let bytes = fs::read(&path).unwrap();
    let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in second..bytes.len() - 1 {
        fs::write(&path, &bytes[..cut]).unwrap();
        let recorder = BlackBox::open(dir.path());
        recorder.note(Kind::Event, "after");
        assert_eq!(texts(&recorder.read(ALL).await), ["whole", "after"], "cut at {cut}");
    }
}

#[tokio::test]
async fn anything_in_the_files_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut junk = vec![0xff_u8; 100_000];
    junk.extend_from_slice(b"\n{}\n[1,2]\n{\"time\":1}\n\0\0\0\n");
    fs::write(dir.path().join("black-box.jsonl"), &junk).unwrap();
    fs::create_dir(dir.path().join("black-box.1.jsonl")).unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Note, "here");
    assert_eq!(texts(&recorder.read(ALL).await), ["here"]);
}

#[tokio::test]
async fn the_ring_never_grows_beyond_its_size_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let size = 20_000;
    let recorder = BlackBox::open_sized(dir.path(), size);
    for number in 0..1000 {
        recorder.note(Kind::Event, &format!("number {number}"));
        if number % 50 == 0 {
            recorder.read(ALL).await;
            assert!(bytes_in(dir.path()) <= 2 * size);
        }
    }
    let lines = texts(&recorder.read(ALL).await);
    assert_eq!(lines.last().unwrap(), "number 999");
    let first: usize = lines[0].strip_prefix("number ").unwrap().parse().unwrap();
    assert!(lines.len() > 100, "kept {}", lines.len());
    assert_eq!(lines.len(), 1000 - first, "no hole between the oldest and the newest");
    assert!(bytes_in(dir.path()) <= 2 * size && bytes_in(dir.path()) > size);
    assert_eq!(FILE_BYTES_MAX * 2, 10_000_000);
}

#[tokio::test]
async fn a_follower_hears_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Event, "before");
    let mut follower = recorder.follow();
    recorder.note(Kind::Event, "link wlan0 up");
    let line = follower.recv().await.unwrap();
    assert_eq!(texts(&[line.to_string()]), ["link wlan0 up"]);
}

#[tokio::test]
async fn a_long_line_is_cut_at_a_letter() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Note, &"\u{1}ü".repeat(LINE_BYTES_MAX));
    let lines = texts(&recorder.read(ALL).await);
    assert!(lines[0].len() <= LINE_BYTES_MAX && lines[0].len() > LINE_BYTES_MAX - 4);
}

#[tokio::test]
async fn a_line_is_in_the_file_within_a_second_without_being_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    recorder.note(Kind::Event, "soon");
    let start = Instant::now();
    while !fs::read_to_string(dir.path().join("black-box.jsonl")).unwrap_or_default().contains("soon") {
        assert!(start.elapsed() < Duration::from_millis(1500));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn without_a_directory_the_last_thousand_lines_stay_in_memory_until_there_is_one() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("not-there");
    let recorder = BlackBox::open(&dir);
    for number in 0..1500 {
        recorder.note(Kind::Event, &number.to_string());
        if number % 100 == 0 {
            recorder.read(ALL).await;
        }
    }
    let lines = texts(&recorder.read(ALL).await);
    assert_eq!((lines.len(), lines[0].as_str(), lines[999].as_str()), (1000, "500", "1499"));
    fs::create_dir(&dir).unwrap();
    let lines = texts(&recorder.read(ALL).await);
    assert_eq!(lines.len(), 1001);
    assert_eq!(lines[1000], "black box on disk again, 500 lines forgotten");
    assert!(bytes_in(&dir) > 0);
}

/// Needs root, for a file system that can be full.
#[tokio::test]
async fn a_full_disk_loses_no_line_that_memory_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mount::tmpfs(dir.path(), "64k");
    let ballast = dir.path().join("ballast");
    fs::write(&ballast, vec![0; 48 * 1024]).unwrap();
    let recorder = BlackBox::open(dir.path());
    for number in 0..900 {
        recorder.note(Kind::Event, &format!("number {number}"));
    }
    let lines = texts(&recorder.read(ALL).await);
    assert_eq!(lines.len(), 900, "on the disk and in memory together");
    assert!(lines.iter().enumerate().all(|(i, line)| *line == format!("number {i}")));
    fs::remove_file(&ballast).unwrap();
    disk.resized("4m");
    let lines = texts(&recorder.read(ALL).await);
    assert_eq!(lines.len(), 901, "healed, and said so");
    recorder.close();
    let file = fs::read_to_string(dir.path().join("black-box.jsonl")).unwrap();
    assert_eq!(file.lines().filter(|line| line.contains("number 899")).count(), 1);
    drop(recorder);
    let again = BlackBox::open(dir.path());
    assert_eq!(again.read(ALL).await.len(), 901, "and every line is there once after a restart");
    again.close();
}

#[test]
fn a_thousand_lines_are_handed_over_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = BlackBox::open(dir.path());
    let start = Instant::now();
    (0..1000).for_each(|number| recorder.note(Kind::Event, &format!("number {number}")));
    assert!(start.elapsed() < Duration::from_millis(250), "{:?}", start.elapsed());
}

fn texts(lines: &[String]) -> Vec<String> {
    let text = |line: &String| serde_json::from_str::<Value>(line).unwrap()["line"].as_str().unwrap().to_owned();
    lines.iter().map(text).collect()
}

fn bytes_in(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// A file system of its own, gone with the value.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn tmpfs(at: &'a Path, size: &str) -> Mount<'a> {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at));
        Mount(at)
    }

    fn resized(&self, size: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0));
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?} (this test needs root)");
}
