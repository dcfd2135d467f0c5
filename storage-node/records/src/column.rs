//! One column of an index block: the same number throughout, or bit-packed above its least, or varints.
//!
//! ```text
//! 0 constant: varint value      1 packed: u8 width, varint least, ceil(n * width / 8) bytes, low bits first
//! 2 varints: n of them
//! ```
//! Whichever is shortest is taken. The number of values is known from outside. Used by [`crate::block`].

use longshore_wire::DecodeError;

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const VARINTS: u8 = 2;

/// Appends `value` in 7-bit groups, low ones first.
pub(crate) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Reads what [`put_varint`] wrote and moves `bytes` on.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(DecodeError::Truncated("index column"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Invalid("index column"))
}

/// Signed to unsigned, small magnitudes to small numbers; differences wrap.
pub(crate) fn zigzag(value: u64) -> u64 {
    value << 1 ^ ((value as i64 >> 63) as u64)
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> u64 {
    value >> 1 ^ (value & 1).wrapping_neg()
}

/// Appends a column; nothing at all if it has no values.
pub(crate) fn put_column(values: &[u64], out: &mut Vec<u8>) {
    let (Some(least), Some(most)) = (values.iter().min(), values.iter().max()) else { return };
    if least == most {
        out.push(CONSTANT);
        put_varint(*least, out);
        return;
    }
    let width = 64 - (most - least).leading_zeros();
    let packed = 1 + varint_len(*least) + (values.len() * width as usize).div_ceil(8);
    let varints: usize = values.iter().map(|value| varint_len(*value)).sum();
    if varints < packed {
        out.push(VARINTS);
        values.iter().for_each(|value| put_varint(*value, out));
        return;
    }
    out.push(PACKED);
    out.push(width as u8);
    put_varint(*least, out);
    let (mut acc, mut bits) = (0_u128, 0);
    for value in values {
        acc |= u128::from(value - least) << bits;
        bits += width;
        while bits >= 8 {
            out.push(acc as u8);
            acc >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(acc as u8);
    }
}

/// Reads a column of `n` values and moves `bytes` on.
pub(crate) fn take_column(bytes: &mut &[u8], n: usize) -> Result<Vec<u64>, DecodeError> {
    if n == 0 {
        return Ok(Vec::new());
    }
    let (kind, rest) = bytes.split_first().ok_or(DecodeError::Truncated("index column"))?;
    *bytes = rest;
    match *kind {
        CONSTANT => Ok(vec![take_varint(bytes)?; n]),
        VARINTS => (0..n).map(|_| take_varint(bytes)).collect(),
        PACKED => {
            let (width, rest) = bytes.split_first().ok_or(DecodeError::Truncated("index column"))?;
            *bytes = rest;
            let width = u32::from(*width);
            if width == 0 || width > 64 {
                return Err(DecodeError::Invalid("index column"));
            }
            let least = take_varint(bytes)?;
            let len = (n * width as usize).div_ceil(8);
            let packed = bytes.get(..len).ok_or(DecodeError::Truncated("index column"))?;
            *bytes = &bytes[len..];
            Ok(unpack(packed, n, width, least))
        }
        _ => Err(DecodeError::Invalid("index column")),
    }
}

fn unpack(packed: &[u8], n: usize, width: u32, least: u64) -> Vec<u64> {
    let mask = u64::MAX >> (64 - width);
    let mut values = Vec::with_capacity(n);
    let (mut acc, mut bits) = (0_u128, 0);
    for byte in packed {
        acc |= u128::from(*byte) << bits;
        bits += 8;
        while bits >= width && values.len() < n {
            values.push(least.wrapping_add(acc as u64 & mask));
            acc >>= width;
            bits -= width;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_is_taken(
            values in prop::collection::vec(prop_oneof![0u64..4, 0u64..70_000, any::<u64>()], 0..300),
        ) {
            let mut out = Vec::new();
            put_column(&values, &mut out);
            let mut bytes = &out[..];
            prop_assert_eq!(take_column(&mut bytes, values.len()).unwrap(), values);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn differences_of_either_sign_come_back(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(unzigzag(zigzag(a.wrapping_sub(b))).wrapping_add(b), a);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            garbage in prop::collection::vec(any::<u8>(), 0..64),
            n in 0usize..300,
        ) {
            let _ = take_column(&mut &garbage[..], n);
        }
    }

    #[test]
    fn a_constant_column_costs_next_to_nothing() {
        let mut out = Vec::new();
        put_column(&[7; 256], &mut out);
        assert_eq!(out.len(), 2);
    }
}
