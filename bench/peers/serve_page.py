"""Drives the page of the server in headless Chromium: two tabs, a reload, tables, widths, light and dark.

    python bench/peers/serve_page.py ALLUVIUM MODEL SHOTS    # SHOTS: the folder for screenshots

Needs Debian's chromium and chromium-driver, and `selenium` from PyPI. Fails where tabs overwrite each other's
conversations, a reload loses an answer, the page asks for anything from elsewhere, or the page is wider than a phone.
"""

import json
import os
import subprocess
import sys
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

TABLE = "| name | bits |\n|:--|--:|\n| `int4` | 4 |\n| a \\| b | **8** |\n\nAfter it.\n\n```\na | b\n```\n\n| no table"


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def wait(what, why, seconds=60):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, why
        time.sleep(0.05)


class Page:
    def __init__(self, driver, shots):
        self.driver, self.shots = driver, shots

    def send(self, text):
        self.driver.find_element(By.ID, "text").send_keys(text, Keys.ENTER)

    def is_idle(self):
        return self.driver.find_element(By.ID, "send").text == "Send"

    def log(self):
        return self.driver.find_element(By.ID, "log").text

    def talks(self):
        return [talk.text for talk in self.driver.find_elements(By.CSS_SELECTOR, ".talk")]

    def stored(self):
        return dict(self.driver.execute_script(
            "return Object.entries(localStorage).filter(([key]) => key.startsWith('talk.'))"
        ))

    def shot(self, name):
        self.driver.save_screenshot(os.path.join(self.shots, name + ".png"))


def tabs(page, url):
    driver = page.driver
    page.send("first of the first tab")
    wait(page.is_idle, "the answer does not end")
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    second = driver.current_window_handle
    driver.get(url)
    driver.find_element(By.ID, "new").click()
    page.send("first of the second tab")
    driver.switch_to.window(first)
    # both answer at once, in conversations of their own
    page.send("second of the first tab")
    wait(page.is_idle, "the first tab's answer does not end")
    driver.switch_to.window(second)
    wait(page.is_idle, "the second tab's answer does not end")
    for window in (first, second):
        driver.switch_to.window(window)
        driver.refresh()
        texts = "\n".join(page.stored().values())
        for text in ("first of the first tab", "second of the first tab", "first of the second tab"):
            assert texts.count(text) == 1, f"{text}: {texts}"
        assert sorted(page.talks()) == ["first of the first tab", "first of the second tab"], page.talks()
    assert "first of the second tab" in page.log(), "each tab keeps the conversation that it shows"
    # one conversation in both: what one writes, the other one shows
    driver.switch_to.window(first)
    [talk for talk in driver.find_elements(By.CSS_SELECTOR, ".talk") if "second" in talk.text][0].click()
    page.send("from the first tab")
    wait(page.is_idle, "the answer does not end")
    driver.switch_to.window(second)
    assert "from the first tab" in page.log()
    page.send("and from the second tab")
    wait(page.is_idle, "the answer does not end")
    driver.switch_to.window(first)
    assert "and from the second tab" in page.log() and page.log().count("from the first tab") == 1
    driver.switch_to.window(second)
    driver.close()
    driver.switch_to.window(first)


def reload(page):
    driver = page.driver
    driver.find_element(By.ID, "new").click()
    driver.find_element(By.TAG_NAME, "summary").click()
    driver.find_element(By.ID, "max_tokens").send_keys("3000")
    page.send("a long answer")
    answer = lambda: driver.execute_script("return current.messages.at(-1).content + current.messages.at(-1).reasoning")
    wait(lambda: len(answer()) > 300, "no answer comes")
    page.shot("running")
    before = answer()
    driver.refresh()
    after = answer()
    assert after.startswith(before[:100]) and len(after) >= len(before), (before, after)
    assert "cut off" in page.log() and page.is_idle(), page.log()
    # it goes on from there
    driver.find_element(By.TAG_NAME, "summary").click()
    field = driver.find_element(By.ID, "max_tokens")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("20")
    page.send("after the reload")
    wait(page.is_idle, "the answer does not end")
    page.send("<img src=x onerror=document.title='bad'>")
    wait(page.is_idle, "the answer does not end")
    assert driver.title == "Alluvium" and "<img" in page.log()


def looks(page):
    driver = page.driver
    message = "{role: 'assistant', content: arguments[0], note: 'made here'}"
    driver.execute_script(f"current.messages.push({message}); draw()", TABLE)
    cells = [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, "#log table th, #log table td")]
    assert cells == ["name", "bits", "int4", "4", "a | b", "8"], cells
    assert driver.find_element(By.CSS_SELECTOR, "#log td:nth-child(2)").value_of_css_property("text-align") == "right"
    assert "| no table" in page.log() and "a | b" in driver.find_element(By.CSS_SELECTOR, "#log pre").text
    for width, height in ((1100, 800), (390, 844)):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            page.shot(f"{scheme}-{width}")
        sizes = "document.documentElement.scrollWidth, document.documentElement.scrollHeight"
        [wide, high, end] = driver.execute_script(f"return [{sizes}, $('form').getBoundingClientRect().bottom]")
        assert wide <= width and high <= height and end <= height, f"larger than the screen: {wide} x {high}, {end}"


def main():
    program, model, shots = sys.argv[1:]
    os.makedirs(shots, exist_ok=True)
    serve = [program, "serve", "--model", model, "--port", "0", "--device", "cpu", "--max-tokens", "60"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        driver = None
        try:
            url = server.stdout.readline().split()[-1] + "/"
            driver = browser()
            driver.get(url)
            page = Page(driver, shots)
            tabs(page, url)
            reload(page)
            looks(page)
            for entry in driver.get_log("performance"):
                message = json.loads(entry["message"])["message"]
                if message["method"] == "Network.requestWillBeSent":
                    asked = message["params"]["request"]["url"]
                    assert asked.startswith(url) or asked.startswith("data:"), asked
            errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
            errors = [entry for entry in errors if "favicon" not in entry["message"]]
            assert not errors, errors
            print("the page: tabs, reload, tables, widths: ok")
        finally:
            if driver:
                driver.quit()
            server.kill()


if __name__ == "__main__":
    main()
