// Java: a pool of threads, code that is compiled while it runs, garbage, a socket of its own and a child.
import java.io.*;
import java.net.*;
import java.nio.file.*;
import java.security.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

public class Threads {
	static String digest(byte[] bytes) {
		try {
			byte[] hash = MessageDigest.getInstance("SHA-256").digest(bytes);
			return HexFormat.of().formatHex(hash).substring(0, 20);
		} catch (NoSuchAlgorithmException impossible) {
			throw new AssertionError(impossible);
		}
	}

	static String work(int number) {
		Map<Integer, String> words = new HashMap<>();
		String word = "" + number;
		for (int i = 0; i < 3000; i++) {
			word = digest(word.getBytes());
			words.put(word.hashCode() % 500, word);
		}
		return digest(new TreeMap<>(words).toString().getBytes());
	}

	static void echo(ServerSocket server) {
		try (Socket client = server.accept()) {
			client.getInputStream().transferTo(client.getOutputStream());
		} catch (IOException error) {
			error.printStackTrace();
			System.exit(1);
		}
	}

	public static void main(String[] arguments) throws Exception {
		Path here = Path.of(System.getenv("CONFORM_DIR"));
		ExecutorService pool = Executors.newFixedThreadPool(3);
		ServerSocket server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
		Thread echoing = new Thread(() -> echo(server));
		echoing.start();
		Socket client = new Socket(server.getInetAddress(), server.getLocalPort());
		Process cat = new ProcessBuilder("cat").start();
		while (!Files.exists(here.resolve("enough"))) {
			List<Future<String>> futures = new ArrayList<>();
			for (int i = 0; i < 12; i++) {
				int number = i;
				futures.add(pool.submit(() -> work(number)));
			}
			byte[] sent = new byte[100_000];
			new Random(7).nextBytes(sent);
			Future<byte[]> back = pool.submit(() -> client.getInputStream().readNBytes(sent.length));
			client.getOutputStream().write(sent);
			cat.getOutputStream().write(sent, 0, 1000);
			cat.getOutputStream().flush();
			String all = digest(back.get()) + digest(cat.getInputStream().readNBytes(1000));
			for (Future<String> future : futures)
				all += future.get();
			Files.writeString(here.resolve("lines"), digest(all.getBytes()) + "\n", StandardOpenOption.CREATE,
					StandardOpenOption.APPEND);
		}
		client.shutdownOutput();
		echoing.join();
		cat.getOutputStream().close();
		cat.waitFor();
		pool.shutdown();
	}
}
