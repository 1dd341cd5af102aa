// The peer: Tomcat's JSR-356 WebSockets, embedded.
//
// Best configuration: NIO connector, a message sent to all with getAsyncRemote(), which does not
// wait for slow clients; each session sends one message at a time, as Tomcat demands, from a queue.
import jakarta.websocket.*;
import jakarta.websocket.server.*;
import java.util.*;
import java.util.concurrent.*;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;
import org.apache.tomcat.websocket.server.WsSci;

public class TomcatApp {
    static final Map<String, Set<Client>> channels = new ConcurrentHashMap<>();

    /** A session and what waits to be sent to it. */
    static final class Client {
        final Session session;
        private final ArrayDeque<String> waiting = new ArrayDeque<>();
        private boolean sending;

        Client(Session session) {
            this.session = session;
        }

        void send(String message) {
            synchronized (this) {
                if (sending) {
                    waiting.add(message);
                    return;
                }
                sending = true;
            }
            session.getAsyncRemote().sendText(message, this::sent);
        }

        private void sent(SendResult result) {
            String next;
            synchronized (this) {
                next = result.isOK() ? waiting.poll() : null;
                sending = next != null;
            }
            if (next != null) session.getAsyncRemote().sendText(next, this::sent);
        }
    }

    @ServerEndpoint("/ws/fanout/{channel}")
    public static class Fanout {
        private Client client;
        private Set<Client> members;

        @OnOpen
        public void open(Session session, @PathParam("channel") String channel) {
            client = new Client(session);
            members = channels.computeIfAbsent(channel, name -> ConcurrentHashMap.newKeySet());
            members.add(client);
        }

        @OnMessage
        public void message(String message) {
            for (Client member : members) member.send(message);
        }

        @OnClose
        public void close() {
            members.remove(client);
        }
    }

    @ServerEndpoint("/ws/echo")
    public static class Echo {
        @OnMessage
        public String message(String message) {
            return message;
        }
    }

    public static class Config implements ServerApplicationConfig {
        public Set<ServerEndpointConfig> getEndpointConfigs(Set<Class<? extends Endpoint>> found) {
            return Set.of();
        }

        public Set<Class<?>> getAnnotatedEndpointClasses(Set<Class<?>> scanned) {
            return Set.of(Fanout.class, Echo.class);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[1]);
        tomcat.setPort(Integer.parseInt(arguments[0]));
        var connector = tomcat.getConnector();
        connector.setProperty("address", "127.0.0.1");
        connector.setProperty("maxConnections", "20000");
        connector.setProperty("acceptCount", "4096");
        connector.setProperty("maxThreads", arguments.length > 2 ? arguments[2] : "20");
        Context context = tomcat.addContext("", arguments[1]);
        context.addServletContainerInitializer(new WsSci(), Set.of(Config.class, Fanout.class,
                Echo.class));
        Tomcat.addServlet(context, "default", new org.apache.catalina.servlets.DefaultServlet());
        context.addServletMappingDecoded("/", "default");
        tomcat.start();
        tomcat.getServer().await();
    }
}
