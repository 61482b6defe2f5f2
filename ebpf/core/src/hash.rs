//! Bob Jenkins' lookup3 over 32-bit words, the hash the kernel itself uses for tuples.
//!
//! Selection of a backend and the first port tried for a masquerade come from it, so it must give the same answer on
//! both sides of the ABI.

const INIT: u32 = 0xdead_beef;

/// Hashes `N` words.
#[inline(always)]
pub fn jhash<const N: usize>(words: &[u32; N], seed: u32) -> u32 {
    let start = INIT.wrapping_add((N as u32) << 2).wrapping_add(seed);
    let mut state = (start, start, start);
    let mut triples = words.chunks_exact(3);
    let mut left = N;
    for triple in triples.by_ref() {
        let &[a, b, c] = triple else { continue };
        state = (state.0.wrapping_add(a), state.1.wrapping_add(b), state.2.wrapping_add(c));
        left -= 3;
        // The last block is closed by `close`, not mixed.
        state = if left == 0 { close(state) } else { mix(state) };
    }
    match *triples.remainder() {
        [a] => close((state.0.wrapping_add(a), state.1, state.2)).2,
        [a, b] => close((state.0.wrapping_add(a), state.1.wrapping_add(b), state.2)).2,
        _ => state.2,
    }
}

#[inline(always)]
fn mix((mut a, mut b, mut c): (u32, u32, u32)) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

#[inline(always)]
fn close((mut a, mut b, mut c): (u32, u32, u32)) -> (u32, u32, u32) {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    (a, b, c)
}

#[cfg(test)]
mod tests {
    use super::jhash;

    /// Vectors computed with lookup3's `hashword`.
    #[test]
    fn agrees_with_lookup3() {
        assert_eq!(jhash::<0>(&[], 0), 0xdead_beef);
        for seed in [0, 1, 0x1234_5678] {
            assert_eq!(jhash(&[7, 8, 9, 10], seed), hashword(&[7, 8, 9, 10], seed));
            assert_eq!(
                jhash(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], seed),
                hashword(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], seed)
            );
            assert_eq!(jhash(&[1, 2, 3], seed), hashword(&[1, 2, 3], seed));
        }
    }

    /// A bucket must not be preferred: 16 buckets, 65,536 tuples that differ in one port.
    #[test]
    fn spreads_source_ports() {
        let mut buckets = [0_u32; 16];
        for port in 0..=u32::from(u16::MAX) {
            let hash = jhash(&[0x0a00_0001, 0x0a60_0001, port | 80 << 16, 6], 42);
            buckets[(hash >> 28) as usize] += 1;
        }
        for count in buckets {
            assert!((3800..4400).contains(&count), "{buckets:?}");
        }
    }

    /// The algorithm once more, written as its author does: an index and a fall-through.
    fn hashword(words: &[u32], seed: u32) -> u32 {
        let mut s = [0xdead_beef_u32.wrapping_add((words.len() as u32) << 2).wrapping_add(seed); 3];
        let mut at = 0;
        while words.len() - at > 3 {
            for (lane, word) in s.iter_mut().zip(&words[at..at + 3]) {
                *lane = lane.wrapping_add(*word);
            }
            for (x, y, z, turn) in
                [(0, 2, 1, 4), (1, 0, 2, 6), (2, 1, 0, 8), (0, 2, 1, 16), (1, 0, 2, 19), (2, 1, 0, 4)]
            {
                s[x] = s[x].wrapping_sub(s[y]) ^ s[y].rotate_left(turn);
                s[y] = s[y].wrapping_add(s[z]);
            }
            at += 3;
        }
        for (lane, word) in s.iter_mut().zip(&words[at..]) {
            *lane = lane.wrapping_add(*word);
        }
        if at < words.len() {
            for (x, y, turn) in
                [(2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)]
            {
                s[x] = (s[x] ^ s[y]).wrapping_sub(s[y].rotate_left(turn));
            }
        }
        s[2]
    }
}
