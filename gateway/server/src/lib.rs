//! The gateway process: listeners, TLS, authentication limits, admin HTTP
