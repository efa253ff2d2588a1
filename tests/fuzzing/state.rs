//! The small files of the state directory: the saved value, and the number of starts.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Shape, Target, shape_of};
use crate::io::storage::SavedFile;

pub const SAVED: Target = Target {
    name: "saved",
    examples,
    words: &[b"switchback saved 1\n", b"list=", b"held=", b"last-good=", b"crc=", b"wifi ", b"wwan0", b"\n", b"cell"],
    repair,
    read,
    memory: (64, 256 * 1024),
};

const BOOT: &str = "8c1b5a2e";

/// A directory of this thread, in memory where there is such a place.
pub fn place(name: &str) -> PathBuf {
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() { base.to_path_buf() } else { std::env::temp_dir() };
    let dir = base.join(format!("switchback-fuzz-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn examples() -> Vec<Vec<u8>> {
    let bodies = [
        "list=\nheld=\nlast-good=\n".to_owned(),
        format!("list=wifi wwan0 cell ethernet\nheld={BOOT}\nlast-good=wwan0\n"),
    ];
    let mut all: Vec<Vec<u8>> =
        bodies.iter().map(|body| format!("switchback saved 1\n{body}crc=00000000\n").into_bytes()).collect();
    all.iter_mut().for_each(repair);
    all.push(b"17\n".to_vec());
    all
}

fn repair(input: &mut Vec<u8>) {
    if let Some(at) = input.windows(4).position(|word| word == b"crc=") {
        let check = format!("{:08x}\n", crc32c::crc32c(&input[..at]));
        input.truncate(at + 4);
        input.extend(check.as_bytes());
    }
}

fn read(input: &[u8]) -> Shape {
    let dir = place("saved");
    let path = dir.join("saved");
    // Damaged, or of a newer version.
    let asides = ["saved.damaged", "saved.aside"].map(|name| dir.join(name));
    asides.iter().for_each(|aside| drop(fs::remove_file(aside)));
    fs::write(&path, input).unwrap();
    fs::write(dir.join("starts"), input).unwrap();
    let file = SavedFile::new(&dir, BOOT);
    let saved = file.load();
    let aside = asides.iter().find(|aside| aside.exists());
    let damaged = aside.is_some();
    assert!(damaged != path.exists(), "a file is used or set aside");
    assert!(aside.is_none_or(|aside| saved == Default::default() && fs::read(aside).unwrap() == input));
    file.save(&saved).unwrap();
    assert_eq!(file.load(), saved, "what is saved is loaded");
    assert!(path.exists());
    let start = file.next_start();
    assert!(start > 0 && file.next_start() >= start, "starts are counted up");
    shape_of(&(damaged, saved.list.len().min(5), saved.held, saved.last_good.is_some(), start == 1))
}
