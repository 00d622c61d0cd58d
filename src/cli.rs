//! The command line: `howdah up`, and what else one can ask of the program.

use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};

use crate::{
    api::identity::User,
    base::{Tasks, pki},
    meta::{Cidr, Quantity},
    node::{images::Images, runtime::shim},
    process::{
        self, STOP_WITHIN,
        apiserver::{self, ApiServer, StoreKind},
        hello, join,
        kubeconfig::Kubeconfig,
        network::{self, Network},
        node::{self, Node},
        roles::{self, Role},
        slot::{self, Slot},
        store,
        up::{self, Cluster, NodeKind},
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
    /// Run an API server alone. Any number of them may serve one Postgres store.
    Apiserver {
        #[command(flatten)]
        serving: Serving,
        #[command(flatten)]
        log: Log,
    },
    /// Run the controllers alone; of several processes one is active.
    Controllers(Apart),
    /// Run the scheduler alone; of several processes one is active.
    Scheduler(Apart),
    /// Run pods on this machine for a cluster elsewhere.
    Node(Joining),
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

#[derive(Args)]
struct Joining {
    /// The cluster's API server, as https://HOST:PORT. May be repeated: the next is asked when one fails.
    #[arg(long, value_name = "URL", required = true)]
    join: Vec<String>,
    /// What `howdah token create` has printed; needed until the machine has joined.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The hash of the cluster's authority, as `howdah token create` prints it, for those who do not trust the token alone.
    #[arg(long, value_name = "sha256:HEX")]
    ca_cert_hash: Option<String>,
    /// Where the node's state, certificates and images are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    #[command(flatten)]
    own: NodeFlags,
    #[command(flatten)]
    log: Log,
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

/// What an API server needs to know.
#[derive(Args)]
struct Serving {
    /// Where the cluster's state and images are kept.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,
    /// Where people reach the API. Pods and other machines reach it at the machine's address and the same port.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    bind: SocketAddr,
    /// The address at which pods and other machines reach this server, instead of the machine's.
    #[arg(long, value_name = "IP")]
    advertise_address: Option<IpAddr>,
    /// One more name or address that the server's certificate is to have. May be repeated.
    #[arg(long, value_name = "NAME")]
    tls_san: Vec<String>,
    /// Where the administrator's kubeconfig is written, readable only by you; those of controllers and scheduler stand beside it.
    #[arg(long, value_name = "PATH", default_value = "kubeconfig/admin.conf")]
    kubeconfig: PathBuf,
    /// Where objects are stored: `sqlite`, a file that survives everything; `memory`, which survives nothing; or a Postgres, which other
    /// servers may share: postgres://USER:PASSWORD@HOST/DATABASE?schema=NAME&sslmode=verify-full.
    #[arg(long, value_name = "STORE", default_value = "sqlite")]
    store: StoreKind,
    /// What all objects may take together, such as 2Gi; beyond it nothing is created (507). Memory holds about a quarter more.
    #[arg(long, value_name = "BYTES", default_value = "2Gi", value_parser = bytes)]
    store_quota: usize,
    /// A file to which a line of JSON is added for every request: who asked for what, the answer's status, time and size.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The addresses of Services in a new cluster, such as 10.96.0.0/16.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Cidr>,
    /// The addresses of pods in a new cluster, such as 10.244.0.0/16; each node gets a /24 of it.
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<Cidr>,
}

impl Serving {
    fn options(self, default_network: Network) -> apiserver::Options {
        apiserver::Options {
            data_dir: self.data_dir,
            bind: self.bind,
            advertise: self.advertise_address,
            names: self.tls_san,
            kubeconfig: self.kubeconfig,
            store: self.store,
            quota: self.store_quota,
            trace: self.trace,
            network: network::Wanted { services: self.service_cidr, pods: self.pod_cidr },
            default_network,
        }
    }
}

/// What a node needs to know.
#[derive(Args)]
struct NodeFlags {
    /// The node's name, instead of the host's.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The node's address, instead of the one from which the machine reaches others.
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// A registry that is asked for images before their own, as http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    registry_mirror: Option<String>,
}

impl NodeFlags {
    fn options(self, data_dir: PathBuf) -> node::Options {
        node::Options { name: self.node_name, address: self.node_ip, data_dir, registry_mirror: self.registry_mirror }
    }
}

#[derive(Args, Default)]
struct Log {
    /// What is logged to standard error: `warn`, `info`, `debug`, or directives such as `howdah::store=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: String,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    serving: Serving,
    #[command(flatten)]
    own: NodeFlags,
    /// Whether this machine runs pods.
    #[arg(long, value_enum, default_value = "embedded")]
    node: NodeKind,
    /// Nodes that only say that their pods run.
    #[arg(long, value_name = "N", default_value_t = 0)]
    simulated_nodes: usize,
    #[command(flatten)]
    log: Log,
}

/// A role that runs apart from the API server.
#[derive(Args)]
struct Apart {
    /// Who this process is: a kubeconfig that an API server has written.
    #[arg(long, value_name = "PATH")]
    kubeconfig: PathBuf,
    /// An API server to ask instead of the kubeconfig's, as https://HOST:PORT. May be repeated: the next is asked when one fails.
    #[arg(long, value_name = "URL")]
    server: Vec<String>,
    #[command(flatten)]
    log: Log,
}

pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Up(mut up) => run(&std::mem::take(&mut up.log), up_until_signal(up)),
        Command::Apiserver { serving, log } => run(&log, serve_until_signal(serving)),
        Command::Controllers(mut apart) => run(&std::mem::take(&mut apart.log), role_until_signal(Role::Controllers, apart)),
        Command::Scheduler(mut apart) => run(&std::mem::take(&mut apart.log), role_until_signal(Role::Scheduler, apart)),
        Command::Backup { file, kubeconfig } => run(&Log::default(), async { counted("Saved", store::backup(&kubeconfig, &file).await) }),
        Command::Restore { file, place } => run(&Log::default(), async { counted("Restored", store::restore(&file, &place.store, &place.data_dir).await) }),
        Command::Store { command, place } => run(&Log::default(), by_hand(command, place)),
        Command::Node(mut joining) => run(&std::mem::take(&mut joining.log), node_until_signal(joining)),
        Command::Token { command } => run(&Log::default(), token(command)),
        Command::Image { command, data_dir } => match image(command, &data_dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&why),
        },
        Command::Hello => hello::serve().map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS),
        Command::Shim { command: Shim::Run { folder } } => shim::run(&folder),
        Command::Shim { command: Shim::Exec { folder, tty, arguments } } => shim::exec(&folder, tty, &arguments),
    }
}

/// A number of bytes, as a quantity.
fn bytes(text: &str) -> Result<usize, String> {
    let quantity: Quantity = text.parse().map_err(|_| "not a quantity such as 2Gi".to_owned())?;
    usize::try_from(quantity.units()).map_err(|_| "negative".to_owned())
}

fn counted(what: &str, result: crate::process::Result<(usize, u64)>) -> ExitCode {
    match result {
        Ok((count, revision)) => say(&format!("{what} {count} objects; the revision is {revision}.")),
        Err(why) => return fail(&why),
    }
    ExitCode::SUCCESS
}

async fn by_hand(command: StoreCommand, place: Place) -> ExitCode {
    let result = match command {
        StoreCommand::Sizes => store::sizes(&place.store, &place.data_dir).await.map(|sizes| {
            say(&format!("{:>10} {:>12}  RESOURCE", "OBJECTS", "BYTES"));
            sizes.iter().for_each(|(resource, size)| say(&format!("{:>10} {:>12}  {resource}", size.objects, size.bytes)));
        }),
        StoreCommand::Delete { resource, name, namespace, .. } => {
            let deleted = store::delete(&place.store, &place.data_dir, &resource, namespace.as_deref(), name.as_deref()).await;
            deleted.map(|count| say(&format!("Deleted {count} objects.")))
        }
    };
    result.map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS)
}

fn image(command: Image, data_dir: &std::path::Path) -> std::io::Result<()> {
    let images = Images::open(&data_dir.join("images"))?;
    match command {
        Image::Import { file } => images.import(&file)?.iter().for_each(|it| println!("{it}")),
        Image::List => images.list().keys().for_each(|it| println!("{it}")),
    }
    Ok(())
}

/// Runs `work` on a runtime of its own, with the log as asked.
fn run(log: &Log, work: impl Future<Output = ExitCode>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.log).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => fail(&error),
    }
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
    let (data_dir, kubeconfig) = (up.serving.data_dir.clone(), up.serving.kubeconfig.clone());
    let store = up.serving.store.to_string();
    let options = up::Options {
        api: up.serving.options(slot::first_network()),
        node: up.node,
        node_options: up.own.options(data_dir),
        simulated_nodes: up.simulated_nodes,
    };
    let cluster = match Cluster::start(options).await {
        Ok(cluster) => cluster,
        Err(error) => return fail(&error),
    };
    say(&format!(
        "The cluster is up after {} ms: API server at {}, store {}, controllers, scheduler.",
        began.elapsed().as_millis(),
        cluster.api.url,
        store
    ));
    if up.simulated_nodes > 0 {
        say(&format!("{} simulated nodes.", up.simulated_nodes));
    }
    cluster.limits.iter().for_each(|it| say(&format!("Note: {it}.")));
    say(&format!("To use it:\n\n  export KUBECONFIG={}\n\nCtrl-C stops it.", kubeconfig.display()));
    let is_ended_by_signal = tokio::select! {
        () = signal() => true,
        () = cluster.failed() => false,
    };
    say("Stopping.");
    ended(is_ended_by_signal, cluster.stop().await)
}

async fn serve_until_signal(serving: Serving) -> ExitCode {
    let (kubeconfig, tasks) = (serving.kubeconfig.clone(), Tasks::new());
    let api = match ApiServer::start(&serving.options(slot::first_network()), &tasks).await {
        Ok(api) => api,
        Err(error) => return fail(&error),
    };
    say(&format!("The API server is at {}, for other machines at {}.\n\n  export KUBECONFIG={}\n\nCtrl-C stops it.", api.url, api.address, kubeconfig.display()));
    let is_ended_by_signal = tokio::select! {
        () = signal() => true,
        () = tasks.stopping() => false,
        () = api.failed() => false,
    };
    let is_clean = tasks.stop(STOP_WITHIN).await;
    ended(is_ended_by_signal, api.stop(STOP_WITHIN).await && is_clean)
}

async fn role_until_signal(role: Role, apart: Apart) -> ExitCode {
    let tasks = Tasks::new();
    let options = roles::Options { kubeconfig: apart.kubeconfig, servers: apart.server };
    if let Err(error) = role.start(&options, &tasks).await {
        return fail(&error);
    }
    say(&format!("Ready to lead: {}. Ctrl-C stops it.", role.name()));
    let is_ended_by_signal = tokio::select! {
        () = signal() => true,
        () = tasks.stopping() => false,
    };
    ended(is_ended_by_signal, tasks.stop(STOP_WITHIN).await)
}

async fn node_until_signal(joining: Joining) -> ExitCode {
    let tasks = Tasks::new();
    let node = match start_node(joining, &tasks).await {
        Ok(node) => node,
        Err(error) => return fail(&error),
    };
    say("The node has joined. Ctrl-C stops it, and the pods on it.");
    let is_ended_by_signal = tokio::select! {
        () = signal() => true,
        () = node.1.failed() => false,
        () = tasks.stopping() => false,
    };
    let is_clean = node.1.stop().await;
    ended(is_ended_by_signal, tasks.stop(STOP_WITHIN).await && is_clean)
}

/// The node, and its place among the clusters of this machine.
async fn start_node(joining: Joining, tasks: &Tasks) -> Result<(Slot, Node), process::Error> {
    std::fs::create_dir_all(&joining.data_dir).map_err(|why| process::Error::new(&joining.data_dir.display().to_string(), why))?;
    let slot = Slot::claim(&joining.data_dir)?;
    let options = joining.own.options(joining.data_dir.clone());
    let join = join::Options {
        servers: joining.join,
        token: joining.token,
        authority_hash: joining.ca_cert_hash,
        data_dir: joining.data_dir,
        node: options.node_name()?,
    };
    let joined = join::join(&join, tasks).await?;
    let node = Node::start(&joined.clients, &joined.authority, &options, &slot, tasks).await?;
    Ok((slot, node))
}

async fn token(command: Token) -> ExitCode {
    let Token::Create { kubeconfig, server, hours, description, quiet } = command;
    let made = async {
        let config = Kubeconfig::await_at(&kubeconfig).await?;
        let clients = config.connect(&kubeconfig, &server, &Tasks::new())?;
        let token = join::create_token(&clients.of(&User::default()), Duration::from_secs(u64::from(hours) * 3600), &description).await?;
        let hash = pki::public_key_hash(&config.authority).map_err(|why| process::Error::new("the cluster's authority", why))?;
        Ok::<_, process::Error>((server.into_iter().next().unwrap_or(config.server), token, hash))
    };
    match made.await {
        Ok((_, token, _)) if quiet => say(&token),
        Ok((server, token, hash)) => say(&format!("howdah node --join {server} --token {token} --ca-cert-hash {hash}")),
        Err(error) => return fail(&error),
    }
    ExitCode::SUCCESS
}

fn ended(by_signal: bool, is_clean: bool) -> ExitCode {
    if by_signal && is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
