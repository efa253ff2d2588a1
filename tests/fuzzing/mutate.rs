//! How one input is made of others: bytes, numbers, lengths, words, and parts of the same or another input.

use super::INPUT_MAX;

/// Numbers by a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Small numbers more often.
    fn length(&mut self, limit: usize) -> usize {
        let bits = self.below(limit.max(1).ilog2() as usize + 2);
        self.below(1 << bits).min(limit)
    }
}

/// Numbers at which something may turn.
const TURNS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// A new input after one to eight changes of `base`.
pub fn mutate(base: &[u8], other: &[u8], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=random.length(7) {
        change(&mut bytes, other, words, random);
    }
    bytes.truncate(INPUT_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut Random) {
    let size = bytes.len();
    let at = random.below(size + 1);
    let end = at + random.length(size - at);
    match random.below(12) {
        0 if at < size => bytes[at] ^= 1 << random.below(8),
        1 if at < size => bytes[at] = random.next() as u8,
        2 if at < size => bytes[at] = bytes[at].wrapping_add([1, 255, 16, 240][random.below(4)]),
        3 => put_number(bytes, at, random),
        4 => drop(bytes.drain(at..end)),
        5 => bytes.truncate(at),
        6 => {
            let part = bytes[at..end].to_vec();
            let to = random.below(size + 1);
            bytes.splice(to..to, part);
        }
        7 => {
            let from = random.below(other.len() + 1);
            let part = other[from..from + random.length(other.len() - from)].to_vec();
            let keep = if random.below(2) == 0 { at } else { end };
            bytes.splice(at..keep, part);
        }
        8 => {
            let fill: Vec<u8> = (0..random.length(64)).map(|_| random.next() as u8).collect();
            bytes.splice(at..at, fill);
        }
        9 => {
            let byte = random.next() as u8;
            let most = if random.below(50) == 0 { 70_000 } else { 300 };
            let fill = vec![byte; random.length(most)];
            bytes.splice(at..at, fill);
        }
        _ => {
            let word = if words.is_empty() { &[0][..] } else { words[random.below(words.len())] };
            let keep = if random.below(2) == 0 { at } else { (at + word.len()).min(size) };
            bytes.splice(at..keep, word.iter().copied());
        }
    }
}

/// A number at which something may turn, over what stands there: either byte order, or MQTT's length.
fn put_number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let mut number = TURNS[random.below(TURNS.len())];
    if random.below(3) == 0 {
        // Often a length is wrong by a little.
        number = (bytes.len() - at) as u64;
    }
    number = number.wrapping_add(random.below(5) as u64).wrapping_sub(2);
    let width = [1, 2, 4, 8][random.below(4)];
    let mut form = number.to_le_bytes()[..width].to_vec();
    match random.below(3) {
        0 => form.reverse(),
        1 if width > 1 => {
            form = vec![number as u8 | 0x80, (number >> 7) as u8 & 0x7f];
        }
        _ => {}
    }
    bytes.iter_mut().skip(at).zip(form).for_each(|(to, from)| *to = from);
}
