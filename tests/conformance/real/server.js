// Node: an HTTP server and its clients in one process, worker threads with a shared buffer, a child that is piped to.
"use strict";
const { createHash } = require("crypto");
const { spawn } = require("child_process");
const fs = require("fs");
const http = require("http");
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");

const digest = (text) => createHash("sha256").update(text).digest("hex").slice(0, 20);

function work() {
	const shared = new Int32Array(workerData);
	parentPort.on("message", (number) => {
		let word = String(number);
		for (let i = 0; i < 2000; i++) word = digest(word);
		Atomics.add(shared, 0, number);
		Atomics.notify(shared, 0);
		parentPort.postMessage(word);
	});
}

const once = (emitter, name) => new Promise((done) => emitter.once(name, done));

function get(agent, port, path) {
	return new Promise((done, failed) => {
		http.get({ agent, port, path, host: "127.0.0.1" }, (answer) => {
			let body = "";
			answer.on("data", (part) => (body += part));
			answer.on("end", () => done(body));
		}).on("error", failed);
	});
}

async function main() {
	const shared = new SharedArrayBuffer(4);
	const workers = [1, 2].map(() => new Worker(__filename, { workerData: shared }));
	const server = http.createServer((request, answer) => answer.end(digest(request.url).repeat(1000)));
	server.listen(0, "127.0.0.1");
	await once(server, "listening");
	const port = server.address().port;
	const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
	const cat = spawn("cat");
	while (!fs.existsSync(`${process.env.CONFORM_DIR}/enough`)) {
		new Int32Array(shared)[0] = 0;
		const words = workers.map((worker, i) => {
			const told = once(worker, "message");
			worker.postMessage(i + 10);
			return told;
		});
		const bodies = await Promise.all([...Array(40).keys()].map((i) => get(agent, port, `/${i}`)));
		const echo = once(cat.stdout, "data");
		cat.stdin.write("through the pipe");
		const all = [await Promise.all(words), bodies, String(await echo), Atomics.load(new Int32Array(shared), 0)];
		await fs.promises.appendFile(`${process.env.CONFORM_DIR}/lines`, digest(JSON.stringify(all)) + "\n");
	}
	agent.destroy();
	server.close();
	cat.stdin.end();
	await Promise.all(workers.map((worker) => worker.terminate()));
}

if (isMainThread) main();
else work();
