import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.kafka.tools.AclCommand;

/** Runs kafka-acls for each line of a file, in one process: each start of Java takes a while. */
public class ManyAcls {
    public static void main(String[] arguments) throws Exception {
        for (String line : Files.readAllLines(Path.of(arguments[0]))) {
            AclCommand.main(line.split(" "));
        }
    }
}
