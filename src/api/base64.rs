//! Base 64 (RFC 4648, section 4) for payloads that are not text: both directions, nothing else.
//!
//! Padding is required and nothing but the alphabet is taken, so that one payload has one form.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let six = (group >> (18 - 6 * index)) & 63;
            let letter = ALPHABET.get(six as usize).copied().unwrap_or(b'=');
            out.push(if index > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    out
}

/// Text as bytes; `None` when it is no base 64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let body = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut out = Vec::with_capacity(body.len() / 4 * 3 + 2);
    for chunk in body.chunks(4) {
        let mut group = 0u32;
        for letter in chunk {
            group = group << 6 | value(*letter)?;
        }
        group <<= 6 * (4 - chunk.len());
        let [_, a, b, c] = group.to_be_bytes();
        let whole = chunk.len() * 6 / 8;
        out.extend([a, b, c].into_iter().take(whole));
        // What is left over below the last whole byte must be zero, or two texts would mean the same.
        if [a, b, c].into_iter().skip(whole).any(|byte| byte != 0) {
            return None;
        }
    }
    Some(out)
}

fn value(letter: u8) -> Option<u32> {
    let of = |first: u8, offset: u32| Some(u32::from(letter - first) + offset);
    match letter {
        b'A'..=b'Z' => of(b'A', 0),
        b'a'..=b'z' => of(b'a', 26),
        b'0'..=b'9' => of(b'0', 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_standard_hold() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
    }

    #[test]
    fn every_byte_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        for end in 0..=bytes.len() {
            assert_eq!(decode(&encode(&bytes[..end])).as_deref(), Some(&bytes[..end]));
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["Zg", "Z===", "Zg=", "Zh==", "Zm9=", "Zm9v\n", "Z-9v", "====", "=", "Zg==Zg==", "é==="] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
