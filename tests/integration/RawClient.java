import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.util.HexFormat;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** Has the conversation of test_raw_clients.py, and prints each thing that comes on a line. */
class RawClient implements WebSocket.Listener {
    private final LinkedBlockingQueue<String> came = new LinkedBlockingQueue<>();
    private final StringBuilder text = new StringBuilder();
    private final StringBuilder bytes = new StringBuilder();

    public static void main(String[] arguments) throws Exception {
        RawClient client = new RawClient();
        WebSocket socket = HttpClient.newHttpClient()
            .newWebSocketBuilder()
            .buildAsync(URI.create(arguments[0]), client)
            .join();
        socket.sendText("grüße 👋", true).join();
        client.print();
        socket.sendBinary(ByteBuffer.wrap(new byte[] {0, 1, (byte) 0xff}), true).join();
        client.print();
        socket.sendText("all of you", true).join();
        client.print();
        socket.sendText("close", true).join();
        client.print();
    }

    private void print() throws InterruptedException {
        String line = came.poll(15, TimeUnit.SECONDS);
        System.out.write((line + "\n").getBytes(java.nio.charset.StandardCharsets.UTF_8), 0,
            (line + "\n").getBytes(java.nio.charset.StandardCharsets.UTF_8).length);
        System.out.flush();
    }

    @Override
    public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean last) {
        text.append(part);
        if (last) {
            came.add("text " + text);
            text.setLength(0);
        }
        socket.request(1);
        return null;
    }

    @Override
    public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer part, boolean last) {
        byte[] read = new byte[part.remaining()];
        part.get(read);
        bytes.append(HexFormat.of().formatHex(read));
        if (last) {
            came.add("bytes " + bytes);
            bytes.setLength(0);
        }
        socket.request(1);
        return null;
    }

    @Override
    public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
        came.add("closed " + code + " " + reason);
        return null;
    }

    @Override
    public void onError(WebSocket socket, Throwable error) {
        came.add("error " + error);
    }
}
