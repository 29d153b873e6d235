//! Where the last lines of a file begin, read from its end.

use std::io::{self, Read, Seek, SeekFrom};

const BLOCK_BYTES: u64 = 16 << 10;

/// Where the last lines begin, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) offset: u64,
    pub(super) n_lines: u64,
}

/// Finds the last `lines` lines. A line that is not ended yet counts as one.
pub(super) fn start_of_last_lines(file: &mut (impl Read + Seek), lines: u64) -> io::Result<Tail> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut n_lines = 0;
    if lines == 0 || length == 0 {
        return Ok(Tail { offset: length, n_lines });
    }
    let mut end = length;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = start + index as u64;
            // A line begins after each line end but the last one of the file.
            if *byte == b'\n' && at + 1 < length {
                n_lines += 1;
                if n_lines == lines {
                    return Ok(Tail { offset: at + 1, n_lines });
                }
            }
        }
        end = start;
    }
    Ok(Tail { offset: 0, n_lines: n_lines + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    proptest! {
        #[test]
        fn the_tail_is_the_last_lines(
            lengths in proptest::collection::vec(0..5000_usize, 0..30),
            ended in any::<bool>(),
            wanted in 0..40_usize,
        ) {
            let mut text: Vec<u8> =
                lengths.iter().flat_map(|n| [vec![b'x'; *n], vec![b'\n']].concat()).collect();
            if !ended {
                text.extend_from_slice(b"open");
            }
            let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
            let expected: Vec<u8> = lines[lines.len().saturating_sub(wanted)..].concat();
            let tail =
                start_of_last_lines(&mut Cursor::new(&text), wanted as u64).unwrap();
            let offset = usize::try_from(tail.offset).unwrap();
            prop_assert_eq!(&text[offset..], &expected[..]);
            prop_assert_eq!(tail.n_lines, lines.len().min(wanted) as u64);
        }
    }
}
