/* cli/cli.h - the commands of the `realm` program, one function and one file (cmd_<name>.c) each.
 *
 * argv[0] is the command's own name ("info"), the rest its arguments, argv[argc] is NULL. Results go to stdout,
 * messages to stderr; the value is the process's exit status: 0 done, 1 failed (after one line "realm: <what>: <why>"),
 * 2 usage.
 */
#ifndef REALM_CLI_CLI_H
#define REALM_CLI_CLI_H

int realm_cmd_info(int argc, char **argv);
int realm_cmd_pipeline(int argc, char **argv);
int realm_cmd_models(int argc, char **argv);
int realm_cmd_serve(int argc, char **argv);
int realm_cmd_run(int argc, char **argv);
int realm_cmd_chat(int argc, char **argv);
int realm_cmd_tenant(int argc, char **argv);
int realm_cmd_key(int argc, char **argv);
int realm_cmd_usage(int argc, char **argv);
int realm_cmd_program(int argc, char **argv);
int realm_cmd_bench(int argc, char **argv);

#endif
