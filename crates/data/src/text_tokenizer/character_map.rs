//! Whether SentencePiece's compiled character map is sound, before it is handed to a reader that takes it at its word and would panic.
//!
//! Format: length of the trie in bytes (u32), the trie, a text of replacements with a zero byte after each. The trie is a double array
//! (github.com/s-yata/darts-clone): a unit holds a label, whether a value follows, and an offset; from place p with offset o the byte c leads to p ^ o ^ c.

/// An error unless no text can lead a search out of the trie or to a replacement that does not exist.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let (length, rest) = bytes.split_at_checked(4).ok_or("character map: expected the length of its trie, found less than 4 bytes")?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    let (trie, replacements) = rest
        .split_at_checked(length)
        .filter(|_| length >= 4 && length.is_multiple_of(4))
        .ok_or_else(|| format!("character map: expected a trie of 4 to {} bytes, found {length}", rest.len()))?;
    let replacements = std::str::from_utf8(replacements).map_err(|error| format!("character map: expected UTF-8 replacements, found {error}"))?;
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|&unit| u32::from_le_bytes(unit) as usize).collect();

    // Every place where a search can stand, starting at the root; each is visited once.
    let mut seen = vec![false; units.len()];
    let mut places = vec![offset(units[0])];
    while let Some(place) = places.pop() {
        // The 256 places that a byte can lead to are one aligned block.
        if place | 0xff >= units.len() {
            return Err(format!("character map: place {place} leads out of the trie of {} units", units.len()));
        }
        if std::mem::replace(&mut seen[place], true) {
            continue;
        }
        for byte in 1..=0xff {
            let next = place ^ byte;
            let unit = units[next];
            // A set highest bit marks a value, which no byte leads to.
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let after = next ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let value = units.get(after).ok_or_else(|| format!("character map: place {after} leads out of the trie of {} units", units.len()))?;
                let start = value & !(1 << 31);
                if start > replacements.len() || !replacements.is_char_boundary(start) {
                    return Err(format!("character map: expected a replacement at byte {start} of {}", replacements.len()));
                }
            }
            places.push(after);
        }
    }
    Ok(())
}

fn offset(unit: usize) -> usize {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}
