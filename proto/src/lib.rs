//! The gRPC contract between gateways, storage nodes and tools, generated from `proto/longshore/v1/*.proto`.
//!
//! The bytes fields carry the encodings of [`longshore_wire`]. Settings of channels and servers that both
//! ends must share are constants here.
#![forbid(unsafe_code)]

pub mod transport;

pub use longshore_wire as wire;

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, reason = "generated code; the .proto files have the documentation")]
pub mod v1 {
    tonic::include_proto!("longshore.v1");
}

/// The version that streams open with.
pub const VERSION: u32 = 1;
/// HTTP/2 window of one stream, in bytes, on both ends.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 window of a connection, in bytes, on both ends.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Largest gRPC message, in bytes: a frame may gather items up to [`FRAME_BYTES_TARGET`] and then one more.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// A sender starts a new frame once one has this many bytes.
pub const FRAME_BYTES_TARGET: usize = 256 << 10;
