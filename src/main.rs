use std::process::ExitCode;

fn main() -> ExitCode {
    howdah::cli::main()
}
