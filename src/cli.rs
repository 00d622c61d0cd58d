//! The command line: `howdah up`, and what else one can ask of the program.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};

use crate::{
    api::identity::User,
    base::{Tasks, pki},
    node::{images::Images, runtime::shim},
    process::{
        Error, Result, STOP_WITHIN,
        apiserver::{self, ApiServer, StoreKind},
        hello, join,
        kubeconfig::Kubeconfig,
        node::{self, Node},
        roles::{self, Role},
        slot::{self, Slot},
        store,
        up::{self, Cluster},
    },
};

/// Kubernetes in one program, on an embedded store.
#[derive(Parser)]
#[command(name = "howdah", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error: `warn`, `info`, `debug`, or directives such as `howdah::store=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "warn", global = true)]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole cluster and run it until ctrl-C.
    Up(up::Options),
    /// Run an API server alone. Any number of them may serve one Postgres store.
    Apiserver(apiserver::Options),
    /// Run the controllers alone; of several processes one is active.
    Controllers(roles::Options),
    /// Run the scheduler alone; of several processes one is active.
    Scheduler(roles::Options),
    /// Run pods on this machine for a cluster elsewhere.
    Node {
        #[command(flatten)]
        joining: join::Options,
        #[command(flatten)]
        own: node::Options,
    },
    /// Work with the tokens by which machines join.
    Token {
        #[command(subcommand)]
        command: Token,
    },
    /// Write every object of a running cluster, Secrets and keys too, into a file.
    Backup {
        file: PathBuf,
        /// The administrator's kubeconfig.
        #[arg(long, value_name = "PATH", default_value = "kubeconfig/admin.conf")]
        kubeconfig: PathBuf,
    },
    /// Make the store of a stopped cluster, or of a new one, what a backup is.
    Restore {
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Look into the store of a stopped cluster (a Postgres may be in use), and delete from it.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
        #[command(flatten)]
        place: Place,
    },
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
enum Token {
    /// Make a token, and print the command with which a machine joins.
    Create {
        /// The administrator's kubeconfig.
        #[arg(long, value_name = "PATH", default_value = "kubeconfig/admin.conf")]
        kubeconfig: PathBuf,
        /// An API server to ask instead of the kubeconfig's, as https://HOST:PORT. May be repeated: the next is asked when one fails.
        #[arg(long, value_name = "URL")]
        server: Vec<String>,
        /// How many hours the token is good for.
        #[arg(long, value_name = "N", default_value_t = 24)]
        hours: u32,
        /// What the token is for.
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// Print the token alone.
        #[arg(long)]
        quiet: bool,
    },
}

/// Where a store is.
#[derive(Args)]
struct Place {
    /// As `up` has it.
    #[arg(long, value_name = "STORE", default_value = "sqlite", global = true)]
    store: StoreKind,
    /// Where a SQLite store is.
    #[arg(long, value_name = "DIR", default_value = "data", global = true)]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// List how many objects each resource has, and their bytes.
    Sizes,
    /// Delete objects without finalizers or admission: one by its name, or all of a resource.
    Delete {
        /// A resource as `sizes` lists it, such as `pods` or `apps/deployments`.
        resource: String,
        name: Option<String>,
        /// Only in this namespace.
        #[arg(long, short)]
        namespace: Option<String>,
        /// All objects of the resource.
        #[arg(long, conflicts_with = "name", required_unless_present = "name")]
        all: bool,
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

pub fn main() -> ExitCode {
    let Cli { command, log } = Cli::parse();
    match command {
        Command::Up(options) => run(&log, up_until_signal(options)),
        Command::Apiserver(options) => run(&log, serve_until_signal(options)),
        Command::Controllers(options) => run(&log, role_until_signal(Role::Controllers, options)),
        Command::Scheduler(options) => run(&log, role_until_signal(Role::Scheduler, options)),
        Command::Node { joining, own } => run(&log, node_until_signal(joining, own)),
        Command::Backup { file, kubeconfig } => run(&log, async move { Ok(counted("Saved", store::backup(&kubeconfig, &file).await?)) }),
        Command::Restore { file, place } => run(&log, async move { Ok(counted("Restored", store::restore(&file, &place.store, &place.data_dir).await?)) }),
        Command::Store { command, place } => run(&log, by_hand(command, place)),
        Command::Token { command } => run(&log, token(command)),
        Command::Image { command, data_dir } => finish(image(command, &data_dir)),
        Command::Hello => finish(hello::serve().map(|()| true)),
        Command::Shim { command: Shim::Run { folder } } => shim::run(&folder),
        Command::Shim { command: Shim::Exec { folder, tty, arguments } } => shim::exec(&folder, tty, &arguments),
    }
}

fn counted(what: &str, (count, revision): (usize, u64)) -> bool {
    say(&format!("{what} {count} objects; the revision is {revision}."));
    true
}

async fn by_hand(command: StoreCommand, place: Place) -> Result<bool> {
    match command {
        StoreCommand::Sizes => {
            let sizes = store::sizes(&place.store, &place.data_dir).await?;
            say(&format!("{:>10} {:>12}  RESOURCE", "OBJECTS", "BYTES"));
            sizes.iter().for_each(|(resource, size)| say(&format!("{:>10} {:>12}  {resource}", size.objects, size.bytes)));
        }
        StoreCommand::Delete { resource, name, namespace, .. } => {
            let count = store::delete(&place.store, &place.data_dir, &resource, namespace.as_deref(), name.as_deref()).await?;
            say(&format!("Deleted {count} objects."));
        }
    }
    Ok(true)
}

fn image(command: Image, data_dir: &std::path::Path) -> std::io::Result<bool> {
    let images = Images::open(&data_dir.join("images"))?;
    match command {
        Image::Import { file } => images.import(&file)?.iter().for_each(|it| println!("{it}")),
        Image::List => images.list().keys().for_each(|it| println!("{it}")),
    }
    Ok(true)
}

/// The stack of a worker thread: documents are read down to 64 levels within a request's own frames, which in a build for tests are large. Pages that nobody touches cost nothing.
const STACK_BYTES: usize = 4 << 20;

/// What waits in a thread, as for a child that does not end, does not keep the program.
const BLOCKING_END_WITHIN: Duration = Duration::from_secs(5);

/// Runs `work` on a runtime of its own, with the log as asked.
fn run(log: &str, work: impl Future<Output = Result<bool>>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_new(log).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    finish(tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build().map_err(|why| Error::new("threads", why)).and_then(|runtime| {
        let done = runtime.block_on(work);
        runtime.shutdown_timeout(BLOCKING_END_WITHIN);
        done
    }))
}

/// Whether all went well; or why it did not.
fn finish(done: std::result::Result<bool, impl std::fmt::Display>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("howdah: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the person at the terminal; that nobody reads any more does not end the cluster.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn up_until_signal(options: up::Options) -> Result<bool> {
    let began = Instant::now();
    let (kubeconfig, store, simulated) = (options.api.kubeconfig.clone(), options.api.store.to_string(), options.simulated_nodes);
    let cluster = Cluster::start(options).await?;
    let (took, url) = (began.elapsed().as_millis(), &cluster.api.url);
    say(&format!("The cluster is up after {took} ms: API server at {url}, store {store}, controllers, scheduler."));
    if simulated > 0 {
        say(&format!("{simulated} simulated nodes."));
    }
    cluster.limits.iter().for_each(|it| say(&format!("Note: {it}.")));
    say(&format!("To use it:\n\n  export KUBECONFIG={}\n\nCtrl-C stops it.", kubeconfig.display()));
    let is_asked = signal_before(cluster.failed()).await;
    say("Stopping.");
    Ok(cluster.stop().await && is_asked)
}

async fn serve_until_signal(options: apiserver::Options) -> Result<bool> {
    let tasks = Tasks::new();
    let api = ApiServer::start(&options, slot::free_network(), &tasks).await?;
    let kubeconfig = options.kubeconfig.display();
    say(&format!("The API server is at {}, for other machines at {}.\n\n  export KUBECONFIG={kubeconfig}\n\nCtrl-C stops it.", api.url, api.address));
    let is_asked = signal_before(either(tasks.stopping(), api.failed())).await;
    let is_clean = tasks.stop(STOP_WITHIN).await;
    Ok(api.stop(STOP_WITHIN).await && is_clean && is_asked)
}

async fn role_until_signal(role: Role, options: roles::Options) -> Result<bool> {
    let tasks = Tasks::new();
    role.start(&options, &tasks).await?;
    say(&format!("Ready to lead: {}. Ctrl-C stops it.", role.name()));
    let is_asked = signal_before(tasks.stopping()).await;
    Ok(tasks.stop(STOP_WITHIN).await && is_asked)
}

async fn node_until_signal(mut joining: join::Options, mut own: node::Options) -> Result<bool> {
    let tasks = Tasks::new();
    std::fs::create_dir_all(&joining.data_dir).map_err(|why| Error::new(&joining.data_dir.display().to_string(), why))?;
    let slot = Slot::claim(&joining.data_dir)?;
    own.data_dir.clone_from(&joining.data_dir);
    joining.node = own.node_name()?;
    let joined = join::join(&joining, &tasks).await?;
    let node = Node::start(&joined.clients, &joined.authority, &own, &slot, &tasks).await?;
    say("The node has joined. Ctrl-C stops it, and the pods on it.");
    let is_asked = signal_before(either(tasks.stopping(), node.failed())).await;
    let is_clean = node.stop().await;
    Ok(tasks.stop(STOP_WITHIN).await && is_clean && is_asked)
}

async fn token(command: Token) -> Result<bool> {
    let Token::Create { kubeconfig, server, hours, description, quiet } = command;
    let config = Kubeconfig::await_at(&kubeconfig).await?;
    let clients = config.connect(&kubeconfig, &server, &Tasks::new())?;
    let token = join::create_token(&clients.of(&User::default()), Duration::from_secs(u64::from(hours) * 3600), &description).await?;
    let hash = pki::public_key_hash(&config.authority).map_err(|why| Error::new("the cluster's authority", why))?;
    let server = server.into_iter().next().unwrap_or(config.server);
    say(&if quiet { token } else { format!("howdah node --join {server} --token {token} --ca-cert-hash {hash}") });
    Ok(true)
}

async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => (),
        () = other => (),
    }
}

/// Waits; whether somebody asked for the end before a part failed.
async fn signal_before(failure: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = signal() => true,
        () = failure => false,
    }
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
