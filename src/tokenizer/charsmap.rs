//! SentencePiece's compiled character maps (`precompiled_charsmap`), checked before they are used.
//!
//! The bytes are the size of a trie, the trie as 32-bit units of a double array (Darts), and the replacements, each
//! ended by a zero byte. `tokenizers` 0.23 follows the trie without looking whether it leads outside, so a damaged one
//! would panic, and it allocates for the size that the file states.

/// Whether every walk through the map stays inside it.
pub(super) fn check(map: &[u8]) -> Result<(), String> {
    let Some((size, rest)) = map.split_first_chunk::<4>() else {
        return Err(format!("character map: expected at least 4 bytes, found {}", map.len()));
    };
    let size = u32::from_le_bytes(*size) as usize;
    let Some((trie, replacements)) = rest.split_at_checked(size) else {
        return Err(format!("character map: a trie of {size} bytes, but only {} follow", rest.len()));
    };
    let replacements = std::str::from_utf8(replacements).map_err(|e| format!("character map: replacements: {e}"))?;
    let units: Vec<usize> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let outside = |at: usize| format!("character map: unit {at} of {}", units.len());

    let root = *units.first().ok_or_else(|| outside(0))?;
    let mut seen = vec![false; units.len()];
    let mut nodes = vec![offset(root)];
    while let Some(node) = nodes.pop() {
        // Any byte may follow, and the unit at `node ^ byte` is read to see whether it does.
        if node | 255 >= units.len() {
            return Err(outside(node | 255));
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=255 {
            let unit = units[node ^ byte];
            if unit & (1 << 31 | 255) != byte {
                continue;
            }
            let child = node ^ byte ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let place = units.get(child).ok_or_else(|| outside(child))? & ((1 << 31) - 1);
                if !replacements.is_char_boundary(place) {
                    return Err(format!("character map: replacement at byte {place} of {}", replacements.len()));
                }
            }
            nodes.push(child);
        }
    }
    Ok(())
}

/// How far a unit's children lie from it: 22 bits, of which the lowest is worth 256 where bit 9 is set.
fn offset(unit: usize) -> usize {
    unit >> 10 << ((unit & 1 << 9) >> 6)
}
