// What swsl-classify keeps of a run: `--output`, `--resume`, locks and interruptions.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <swsl/runner.h>

#include "run_app.h"

TEST(an_output_file_gets_its_name_when_it_is_whole_and_can_be_gone_on_with) {
  namespace fs = std::filesystem;
  const fs::path folder = data("to resume");
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const char* name : {"a", "b, \"c\"", "d\ne", "f", "g"})
    fs::copy(data("photo.jpg"), folder / (std::string(name) + ".jpg"));
  fs::copy(data("empty.pt"), folder / "b.jpg");
  for (const std::string suffix : {".csv", ".jsonl"}) {
    const std::string target = data("resumed" + suffix), partial = target + ".partial";
    const auto begin = [&](const std::string& rows) {  // as an interrupted run leaves it
      std::ofstream(partial, std::ios::binary) << rows;
      fs::copy_file(target + ".run.json", partial + ".run.json", fs::copy_options::overwrite_existing);
    };
    const std::string arguments =
        model + ' ' + quoted("to resume") + " --top-k 2 --batch-size 2 -o '" + target + '\'';
    fs::remove(target), fs::remove(partial);
    const auto first = classify(arguments);
    CHECK_EQ(first.code, 1);
    CHECK_EQ(first.out, "");
    CHECK(!fs::exists(partial) && !fs::exists(partial + ".run.json") && !fs::exists(target + ".lock"));
    const std::string whole = contents(target);
    const auto again = classify(arguments + " --resume");
    CHECK_EQ(again.code, 0);
    CHECK(has(again.errors, "resumed" + suffix + " is complete\n"));
    fs::remove(target);
    for (std::size_t length = 0; length <= whole.size(); length += 61) {
      begin(whole.substr(0, length));
      const auto resumed = classify(arguments + " --resume");
      if (contents(target) != whole)
        check::fail(__FILE__, __LINE__, "other rows after ", length, " bytes: ", resumed.errors);
      fs::remove(target);
    }
    begin(whole);
    const auto others = classify(model + ' ' + quoted("photo.jpg") +
                                 " --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK_EQ(others.code, 1);
    CHECK(has(others.errors, suffix + ".partial: row 1 is of " + (folder / "a.jpg").string() +
                                 ", but input 1 is now " + data("photo.jpg")));
    const auto fewer = classify("-h > /dev/null; printf '' | \"$SWSL_CLASSIFY\" " + model +
                                " - --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK(has(fewer.errors, "row 1 is of " + (folder / "a.jpg").string() + ", but input 1 is now missing"));
    CHECK_EQ(contents(partial), whole);
    const auto other = classify(arguments + " --resume --top-k 3 --exif-orientation");
    CHECK_EQ(other.code, 1);
    CHECK(has(other.errors, suffix + ".partial: was made with exif_orientation false and not true, top_k 2 "
                                     "and not 3; give the same model"));
    fs::remove(partial + ".run.json");
    CHECK(has(classify(arguments + " --resume").errors, suffix + ".partial: does not say what made it"));
    CHECK_EQ(contents(partial), whole);
    CHECK_EQ(classify(arguments).code, 1);  // without --resume it begins again
    CHECK_EQ(contents(target), whole);
  }
}

TEST(a_run_killed_at_any_moment_is_gone_on_with) {
  namespace fs = std::filesystem;
  const std::string list = data("many.txt"), target = data("killed.csv"), partial = target + ".partial";
  {
    std::ofstream file(list);
    for (int i = 0; i < 400; ++i) file << (i % 50 == 7 ? data("nothing.jpg") : data("photo.jpg")) << '\n';
  }
  const std::string arguments = model + " - --batch-size 4 -o '" + target + "' --resume",
                    input = "cat '" + list + "' | ";
  fs::remove(target), fs::remove(partial);
  CHECK_EQ(classify(arguments, input).code, 1);
  const std::string whole = contents(target);
  CHECK_EQ(std::count(whole.begin(), whole.end(), '\n'), 401);

  std::mt19937 random(20);
  int kills = 0, under_way = 0;
  fs::remove(target);
  for (int round = 0; round < 200 && kills < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      std::freopen(list.c_str(), "r", stdin);
      std::freopen("/dev/null", "w", stderr);
      execl(std::getenv("SWSL_CLASSIFY"), "swsl-classify", data("tiny.pt").c_str(), "-", "--batch-size", "4",
            "-o", target.c_str(), "--resume", nullptr);
      _exit(127);
    }
    const long size = fs::exists(partial) ? static_cast<long>(fs::file_size(partial)) : 0;
    const auto goal =
        size + std::uniform_int_distribution<long>(0, static_cast<long>(whole.size()) / 12)(random);
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {  // until it has written so much more
      std::error_code ignored;
      if (fs::exists(partial) && static_cast<long>(fs::file_size(partial, ignored)) >= goal)
        kill(child, SIGKILL);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (WIFSIGNALED(status)) {
      ++kills;
      const std::string rows = contents(partial);
      CHECK_EQ(whole.substr(0, rows.size()), rows);
      under_way += !rows.empty();
    }
    if (fs::exists(target)) {
      CHECK_EQ(contents(target), whole);
      fs::remove(target);
    }
  }
  CHECK_EQ(kills, 20);
  CHECK(under_way >= 10);
  classify(arguments, input);
  CHECK_EQ(contents(target), whole);
}

TEST(a_finished_output_is_complete_only_if_it_is) {
  namespace fs = std::filesystem;
  const std::string target = data("finished.csv");
  const auto of = [&](const std::string& names, const std::string& more = "") {
    return classify(model + ' ' + names + " --batch-size 2 --resume -o '" + target + '\'' + more);
  };
  fs::remove(target);
  const std::string photo = quoted("photo.jpg");
  const std::string four = photo + ' ' + photo + ' ' + photo + ' ' + photo;
  CHECK_EQ(of(four).code, 0);
  const std::string expected = contents(target),
                    one = expected.substr(expected.rfind('\n', expected.size() - 2) + 1);
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  CHECK(has(of(four).errors, "finished.csv is complete\n"));
  CHECK(!has(of(four + ' ' + photo).errors, "is complete"));
  CHECK_EQ(contents(target), expected + one);
  CHECK_EQ(static_cast<unsigned>(fs::status(target).permissions()), 0600u);
  CHECK(has(of(four).errors,
            "finished.csv: row 5 is of " + data("photo.jpg") + ", but input 5 is now missing"));
  CHECK(has(of(four + ' ' + photo, " --dtype bfloat16").errors,
            "finished.csv: was made with dtype float32 and not bfloat16"));
  CHECK_EQ(contents(target), expected + one);
  CHECK(!fs::exists(target + ".partial"));
}

TEST(any_name_is_written_as_utf8_and_gone_on_with) {
  namespace fs = std::filesystem;
  const fs::path folder = data("names");
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::vector<std::pair<std::string, std::string>> names = {
      // in sorted order
      {"\t\r\n,\".jpg", "\t\r\n,\".jpg"},
      {"\\x41\\x4\\xFF.jpg", "\\x5cx41\\x4\\xFF.jpg"},
      {"\xc3\xa9\xe2\x82.jpg", "é\\xe2\\x82.jpg"},
      {"\xed\xa0\x80\xc0\xaf.jpg", "\\xed\\xa0\\x80\\xc0\\xaf.jpg"},
      {"\xff.jpg", "\\xff.jpg"}};
  for (const auto& name : names) fs::copy_file(data("empty.pt"), folder / name.first);
  for (const std::string suffix : {".csv", ".jsonl"}) {
    const std::string target = data("names" + suffix),
                      arguments = model + ' ' + quoted("names") + " --resume -o '" + target + '\'';
    fs::remove(target);
    CHECK_EQ(classify(arguments).code, 1);
    const std::string rows = contents(target);
    for (const auto& [name, written] : names) {
      std::string expected = (folder / written).string();
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const auto letter = std::string_view("\t\r\n").find(expected[i]);
        const std::string json =
            std::string("\\") + (letter == std::string_view::npos ? expected[i] : "trn"[letter]);
        const bool csv = suffix == ".csv";
        if (csv ? expected[i] != '"' : std::string("\t\r\n\"\\").find(expected[i]) == std::string::npos)
          continue;
        expected.replace(i, 1, csv ? "\"\"" : json);
        ++i;
      }
      if (!has(rows, expected)) check::fail(__FILE__, __LINE__, expected, " is not in ", rows);
    }
    CHECK(has(classify(arguments).errors, "is complete"));
  }
}

TEST(the_second_writer_of_an_output_is_refused_and_an_interrupted_one_says_what_it_kept) {
  namespace fs = std::filesystem;
  const std::string target = data("locked.csv"), link = data("link.csv"), errors = data("interrupted.txt");
  for (const auto& old : {target, target + ".partial", link, errors}) fs::remove(old);
  fs::create_symlink(target, link);
  std::ofstream(target + ".lock") << "12 on another host\n";  // left by a run that was killed
  for (const int signal : {SIGINT, SIGTERM}) {
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[0], STDIN_FILENO);
      close(ends[0]), close(ends[1]);
      std::freopen(errors.c_str(), "w", stderr);
      execl(std::getenv("SWSL_CLASSIFY"), "swsl-classify", data("tiny.pt").c_str(), "-", "--batch-size", "1",
            "-o", target.c_str(), "--resume", nullptr);
      _exit(127);
    }
    close(ends[0]);
    if (signal == SIGTERM) {
      const std::string name = data("photo.jpg") + '\n';
      for (int i = 0; i < 20; ++i)
        CHECK_EQ(write(ends[1], name.data(), name.size()), static_cast<ssize_t>(name.size()));
    }
    const auto enough = [&] {
      if (signal == SIGINT) return fs::exists(target + ".partial.run.json");  // it waits for a first name
      const std::string rows = fs::exists(target + ".partial") ? contents(target + ".partial") : "";
      return std::count(rows.begin(), rows.end(), '\n') > 3;
    };
    for (int i = 0; i < 3000 && !enough(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    for (const std::string options : {"", " --resume"}) {
      const auto second = classify(model + ' ' + quoted("photo.jpg") + options + " -o '" + link + '\'');
      CHECK_EQ(second.code, 1);
      CHECK(has(second.errors, "locked.csv: is being written by process " + std::to_string(child) + " on "));
    }
    kill(child, signal);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    close(ends[1]);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 128 + signal);
    CHECK(!fs::exists(target + ".lock"));
    if (signal == SIGINT) {
      CHECK(has(contents(errors), "swsl-classify: interrupted: nothing was kept"));
      CHECK(!fs::exists(target + ".partial") && !fs::exists(target + ".partial.run.json"));
    } else {
      const std::string rows = contents(target + ".partial");
      const auto kept = std::count(rows.begin(), rows.end(), '\n') - 1;
      CHECK(kept > 2);
      CHECK(has(contents(errors), "interrupted: " + std::to_string(kept) + " rows are in " + target +
                                      ".partial; go on with --resume\n"));
    }
  }
}

TEST(an_output_goes_through_a_link_and_into_a_pipe) {
  namespace fs = std::filesystem;
  const std::string target = data("linked.csv"), link = data("a link.csv"), pipe = data("a pipe"),
                    taken = data("taken.txt");
  for (const auto& old : {target, link, pipe, taken}) fs::remove(old);
  fs::create_symlink("linked.csv", link);
  const std::string arguments = model + ' ' + quoted("photo.jpg") + " --top-k 1 ";
  CHECK_EQ(classify(arguments + "-o '" + link + '\'').code, 0);
  CHECK(fs::is_symlink(link) && fs::is_regular_file(fs::symlink_status(target)));
  const std::string rows = contents(target);
  CHECK_EQ(classify(arguments + "--format csv -o /dev/stdout").out, rows);
  CHECK_EQ(classify(arguments + "-o /dev/stdout | cat; exit 3").code, 3);
  CHECK_EQ(mkfifo(pipe.c_str(), 0600), 0);
  CHECK_EQ(
      classify(arguments + "--format csv -o '" + pipe + '\'', "cat '" + pipe + "' > '" + taken + "' & ").code,
      0);
  for (int i = 0; i < 1000 && contents(taken) != rows; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK_EQ(contents(taken), rows);
  CHECK(fs::is_fifo(pipe) && !fs::exists(pipe + ".partial"));
  CHECK_EQ(classify(arguments + "--resume -o '" + pipe + '\'').code, 2);
  CHECK_EQ(classify(arguments + "-o '" + data("folder") + "'").code, 1);
}

// A result comes before the next path is written: a program that waited for a full batch would wait for ever.
