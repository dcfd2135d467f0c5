//! Nested tables and arrays on a stack of 64 KiB: refused by depth, however deep.

use bytes::{BufMut, Bytes, BytesMut};
use longshore_amqp_codec::{CodecError, Table};

/// The encoded entries of tables (or arrays) nested `depth` deep, the outermost table included.
fn nested(depth: usize, tag: u8) -> Bytes {
    let levels = depth - 1;
    let per_level = if tag == b'F' { 6 } else { 5 };
    let mut out = BytesMut::new();
    for level in 0..levels {
        if level == 0 || tag == b'F' {
            out.put_slice(b"\x01k");
        }
        out.put_u8(tag);
        let inner = levels - level - 1;
        out.put_u32((inner * (per_level + usize::from(tag == b'F'))) as u32);
    }
    out.freeze()
}

#[test]
fn nesting_is_refused_below_64_on_a_small_stack() {
    let check = || {
        for tag in [b'F', b'A'] {
            assert!(Table::parse(nested(64, tag)).is_ok());
            for depth in [65, 1_000, 1_500, 20_000, 200_000] {
                let error = Table::parse(nested(depth, tag)).unwrap_err();
                assert_eq!((error, error.reply_code().code()), (CodecError::Nesting, 501));
            }
        }
    };
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(check).unwrap();
    thread.join().unwrap();
}
