//! The command line: `howdah up`, and what else one can ask of the program.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    node::{images::Images, runtime::shim},
    process::{
        hello,
        up::{Cluster, NodeKind, Options, StoreKind},
    },
};

/// Kubernetes in one program, on an embedded store.
#[derive(Parser)]
#[command(name = "howdah", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole cluster and run it until ctrl-C.
    Up(Up),
    /// Work with the images of a cluster's node.
    Image {
        #[command(subcommand)]
        command: Image,
        /// The cluster's data directory.
        #[arg(long, value_name = "DIR", default_value = "data", global = true)]
        data_dir: PathBuf,
    },
    /// Serve the host's name over HTTP on port 8080: what the image howdah/hello:1 runs.
    #[command(hide = true)]
    Hello,
    /// The process beside a container; the node agent starts it.
    #[command(hide = true)]
    Shim {
        #[command(subcommand)]
        command: Shim,
    },
}

#[derive(Subcommand)]
enum Image {
    /// Import an archive: an OCI image layout, or what `docker save` writes.
    Import { file: PathBuf },
    /// List the images that pods can run without a registry.
    List,
}

#[derive(Subcommand)]
enum Shim {
    Run {
        folder: PathBuf,
    },
    Exec {
        folder: PathBuf,
        #[arg(long)]
        tty: bool,
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct Up {
    /// Where the cluster's state, certificates and images are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    /// Where people reach the API. Pods reach it at the machine's address and the same port.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    bind: SocketAddr,
    /// Where the administrator's kubeconfig is written, readable only by you.
    #[arg(long, value_name = "PATH", default_value = "kubeconfig/admin.conf")]
    kubeconfig: PathBuf,
    /// Where objects are stored: a SQLite file that survives everything, or memory that survives nothing.
    #[arg(long, value_enum, default_value = "sqlite")]
    store: StoreKind,
    /// Whether this machine runs pods.
    #[arg(long, value_enum, default_value = "embedded")]
    node: NodeKind,
    /// Nodes that only say that their pods run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    simulated_nodes: usize,
    /// A registry that is asked for images before their own, as http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    registry_mirror: Option<String>,
    /// A file to which a line of JSON is added for every request: who asked for what, the answer's status, time and size.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// What is logged to standard error: `warn`, `info`, `debug`, or directives such as `howdah::store=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
}

pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Up(up) => run(up),
        Command::Image { command, data_dir } => match image(command, &data_dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&why),
        },
        Command::Hello => hello::serve().map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS),
        Command::Shim { command: Shim::Run { folder } } => shim::run(&folder),
        Command::Shim { command: Shim::Exec { folder, tty, arguments } } => shim::exec(&folder, tty, &arguments),
    }
}

fn image(command: Image, data_dir: &std::path::Path) -> std::io::Result<()> {
    let images = Images::open(&data_dir.join("images"))?;
    match command {
        Image::Import { file } => images.import(&file)?.iter().for_each(|it| println!("{it}")),
        Image::List => images.list().keys().for_each(|it| println!("{it}")),
    }
    Ok(())
}

fn run(up: Up) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_new(&up.log).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(up_until_signal(up))
}

fn fail(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("howdah: {why}");
    ExitCode::FAILURE
}

/// Tells the person at the terminal; that nobody reads any more does not end the cluster.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn up_until_signal(up: Up) -> ExitCode {
    let began = Instant::now();
    let options = Options {
        data_dir: up.data_dir,
        bind: up.bind,
        kubeconfig: up.kubeconfig,
        store: up.store,
        node: up.node,
        simulated_nodes: up.simulated_nodes,
        registry_mirror: up.registry_mirror,
        trace: up.trace,
    };
    let cluster = match Cluster::start(options).await {
        Ok(cluster) => cluster,
        Err(error) => return fail(&error),
    };
    let store = up.store.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default();
    say(&format!(
        "The cluster is up after {} ms: API server at {}, store {store}, controllers, scheduler.",
        began.elapsed().as_millis(),
        cluster.url
    ));
    if up.simulated_nodes > 0 {
        say(&format!("{} simulated nodes.", up.simulated_nodes));
    }
    cluster.limits.iter().for_each(|it| say(&format!("Note: {it}.")));
    say(&format!("To use it:\n\n  export KUBECONFIG={}\n\nCtrl-C stops it.", cluster.kubeconfig.display()));
    let is_ended_by_signal = tokio::select! {
        () = signal() => true,
        () = cluster.failed() => false,
    };
    say("Stopping.");
    let is_clean = cluster.stop().await;
    if is_ended_by_signal && is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Completes at ctrl-C or SIGTERM.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => (),
        _ = terminate.recv() => (),
    }
}
