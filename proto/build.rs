//! Compiles the .proto files with a compiler in Rust: nothing but cargo is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["storage", "meta", "peer", "admin"].map(|name| format!("proto/longshore/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").build_transport(true).compile_fds(descriptors)?;
    Ok(())
}
