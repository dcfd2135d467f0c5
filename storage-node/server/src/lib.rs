//! The storage node's threads, gRPC services and metrics
