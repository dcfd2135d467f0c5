//! Meta from outside: transcripts, a model with random commands, bounds, leases.

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod common;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod model;
#[cfg(test)]
mod transcripts;
